"""Scopes of input ranges that programs support, where values have a row for each token."""

from __future__ import annotations

from bitstill.errors import ArtifactError


def check_scope(per: str, where: str, *, tokens: bool, lines: bool, otherwise: str = "run it in torch (bitstill.load)") -> None:
    """Check that ranges correspond to rows of a value: not of a text among tokens, nor of one line of an image.

    Args:
        per: scope of the rule: "token", "sample" or "tensor".
        where: the layer, or the name of its transform.
        tokens: whether the value has a row for each token.
        lines: whether its samples have more than one row.
        otherwise: alternative to another training, for the error.

    Raises:
        ArtifactError: they do not.
    """
    if (per == "sample" and tokens) or (per == "token" and lines):
        other = "token" if tokens else "sample"
        fix = f"Train it with per='{other}' or per='tensor', or {otherwise}."
        layer = where.removesuffix(".input_transform")
        raise ArtifactError(f"inputs quantized per {other} or tensor", given=f"per {per}", where=layer, fix=fix)
