"""Compression rules as data: frozen, validated, comparable, without tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from bitstill.constraints import FractionBelowOne, Range, check_fields
from bitstill.errors import SpecError
from bitstill.quant.base import Clipped, ExactScale, Gradient, Quantizer, ScaleDtype, StraightThrough
from bitstill.quant.binary import Binary
from bitstill.quant.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor
from bitstill.quant.inputs import QuantizeAttention, QuantizeInput
from bitstill.quant.lsq import LearnedStep
from bitstill.quant.points import Points
from bitstill.quant.split import SplitBinary
from bitstill.quant.ternary import Ternary
from bitstill.quant.uniform import Fit, Uniform

UNTRAINED_ITERATIONS = 10
"""Alternating steps that fit a ternary scale without training."""

Bits = Annotated[int, Range(least=1, most=8)] | Literal["ternary"]


@dataclass(frozen=True)
class Prune:
    """Keep the weights of largest magnitude. A stage's `Pruning` may move the mask while it trains.

    Args:
        sparsity: fraction of zeros, 0 to below 1.
        scope: "layer" prunes that fraction of each layer, "global" that fraction of all layers of the rule together, so that
            layers whose weights are large keep more.
        within: N:M sparsity: sparsity * within zeros in every `within` consecutive weights of a row; 2:4 is sparsity=0.5,
            within=4. None does not constrain their positions.
        gradient: "masked" gives pruned weights no gradient, so that only important ones learn; "dense" gives all weights one
            (Lin et al. 2020), so that pruned weights return more readily when masks move.
    """

    sparsity: FractionBelowOne
    scope: Literal["layer", "global"] = "layer"
    within: Annotated[int, Range(least=2, most=2**31)] | None = None
    gradient: Literal["masked", "dense"] = "masked"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.within is None:
            return
        zeros = self.sparsity * self.within
        if self.scope == "global" or abs(zeros - round(zeros)) > 1e-6 or round(zeros) == self.within:
            raise SpecError(
                "scope='layer' and a whole number of zeros in every few weights, fewer than all",
                given=f"sparsity={self.sparsity}, within={self.within}, scope={self.scope!r}",
                where="Prune",
                fix="2:4 is Prune(0.5, within=4).",
            )


@dataclass(frozen=True, kw_only=True)
class Compression:
    """A compression rule for a set of modules.

    Args:
        weight: weight quantizer.
        targets: patterns over module names ("encoder.*"), or roles ("role:stem", "role:classifier"); each must match.
        ignore: patterns or roles excluded from `targets`; each must match, too.
        input: the input quantizer, or None to keep inputs in float.
        prune: magnitude pruning of the same weights, or None.
    """

    weight: Quantizer
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    input: QuantizeInput | None = None
    prune: Prune | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise SpecError("at least one target", given="()", where="Compression", fix="Use targets=('*',) for all layers.")


def quantizer(
    bits: int | Literal["ternary"],
    granularity: Granularity,
    *,
    scale_dtype: ScaleDtype = "float32",
    learned_scale: bool = False,
    untrained: bool = False,
) -> Quantizer:
    """The usual quantizer for a number of bits: 1 is `Binary`, "ternary" is `Ternary`, 2 to 8 are affine `Uniform`.

    Args:
        bits, granularity, scale_dtype, learned_scale: of that quantizer.
        untrained: without further training: scales and offsets minimise the squared error.

    Raises:
        SpecError: learned scales for `Uniform`, whose ranges follow the weights.
    """
    if bits == "ternary":
        iterations = UNTRAINED_ITERATIONS if untrained else 0
        return Ternary(granularity, scale_dtype=scale_dtype, learned_scale=learned_scale, iterations=iterations)
    if bits == 1:
        return Binary(granularity=granularity, scale_dtype=scale_dtype, learned_scale=learned_scale)
    if learned_scale:
        fix = "At 2 to 8 bits a range follows its weights; Points learns where levels lie."
        raise SpecError("1 bit or ternary for learned scales", given=f"{bits} bits", where="quantizer", fix=fix)
    fit: Fit = "least-squares" if untrained else "range"
    return Uniform(bits=bits, granularity=granularity, scale_dtype=scale_dtype, fit=fit)


__all__ = [
    "Binary", "Bucket", "Clipped", "Compression", "ExactScale", "Gradient", "Granularity", "LearnedStep", "PerChannel",
    "PerGroup", "PerTensor", "Points", "Prune", "QuantizeAttention", "QuantizeInput", "Quantizer", "ScaleDtype",
    "SplitBinary", "StraightThrough", "Ternary", "Uniform", "quantizer",
]  # fmt: skip
