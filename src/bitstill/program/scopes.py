"""Over what ranges of inputs may be taken in a program, whose values have a row for each token."""

from __future__ import annotations

from bitstill.errors import ArtifactError


def check_scope(per: str, where: str, *, tokens: bool, lines: bool, otherwise: str = "run it in torch (bitstill.load)") -> None:
    """Refuse ranges that rows of a value do not stand for: of a text among tokens, or of one line of a picture.

    Args:
        per: of the rule: "token", "sample" or "tensor".
        where: the layer, or the name of its transform.
        tokens: whether the value has a row for each token.
        lines: whether its samples have more than one row.
        otherwise: what can be done besides training it in another way.

    Raises:
        ArtifactError: such a range.
    """
    if (per == "sample" and tokens) or (per == "token" and lines):
        other = "token" if tokens else "sample"
        fix = f"Train it with per='{other}' or per='tensor', or {otherwise}."
        layer = where.removesuffix(".input_transform")
        raise ArtifactError(f"inputs quantized per {other} or tensor", given=f"per {per}", where=layer, fix=fix)
