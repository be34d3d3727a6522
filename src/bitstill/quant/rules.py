"""What is to be done to weights and inputs, as data: frozen, validated, comparable, without a tensor in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitstill.errors import SpecError
from bitstill.quant.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor
from bitstill.quant.quantizer import (
    Binary,
    Clipped,
    ExactScale,
    Gradient,
    LearnedStep,
    Points,
    Quantizer,
    ScaleDtype,
    SplitBinary,
    StraightThrough,
    Ternary,
    Uniform,
    quantizer,
)


@dataclass(frozen=True)
class QuantizeInput:
    """How a layer's input is quantized.

    Args:
        bits: 2 to 8; 8 and 4 are what hardware computes.
        symmetric: signed codes; else unsigned with a zero point (per tensor at 8 bits: ONNX `DynamicQuantizeLinear`).
        per: one range per "token" (last dimension), "sample" or "tensor"; learned ranges are per tensor.
        range: "dynamic" (min and max of what comes in), "clip" (PACT: learned bounds) or "step" (LSQ: learned step).
    """

    bits: int = 8
    symmetric: bool = True
    per: Literal["token", "sample", "tensor"] = "token"
    range: Literal["dynamic", "clip", "step"] = "dynamic"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise SpecError("bits from 2 to 8", given=str(self.bits), where="QuantizeInput", fix="Use 8 or 4.")
        if self.range != "dynamic" and self.per != "tensor":
            raise SpecError(
                "per='tensor' for a learned range",
                given=f"per={self.per!r} with range={self.range!r}",
                where="QuantizeInput",
                fix="Set per='tensor', or range='dynamic'.",
            )

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.bits}-bit {'symmetric' if self.symmetric else 'asymmetric'} per {self.per}, {self.range}"


@dataclass(frozen=True)
class QuantizeAttention:
    """How the operands of a transformer's two attention products are quantized (Bai et al. 2021).

    Args:
        products: queries and keys before their product, and values before theirs.
        probabilities: after the softmax, before the product with the values; they are not negative.
    """

    products: QuantizeInput = QuantizeInput()
    probabilities: QuantizeInput = QuantizeInput(symmetric=False)

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"queries, keys and values {self.products.name}; probabilities {self.probabilities.name}"


@dataclass(frozen=True)
class Prune:
    """Keep the weights of largest magnitude. A stage's `Pruning` may move the mask while it trains.

    Args:
        sparsity: fraction of zeros, 0 to below 1.
        scope: "layer" prunes that fraction of each layer, "global" that fraction of all layers of the rule together, so that
            layers whose weights are large keep more.
        within: place the zeros evenly: sparsity * within of every `within` consecutive weights of a row; N:M sparsity 2:4 is
            sparsity=0.5, within=4. None leaves their places free.
        gradient: "masked" gives pruned weights none, so that only the important ones learn; "dense" lets all learn
            (Lin et al. 2020), so that pruned weights come back more readily where masks move.
    """

    sparsity: float
    scope: Literal["layer", "global"] = "layer"
    within: int | None = None
    gradient: Literal["masked", "dense"] = "masked"

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise SpecError(
                "a sparsity of at least 0 and below 1",
                given=str(self.sparsity),
                where="Prune",
                fix="It is the fraction of zeros: 0.9 keeps one weight in ten.",
            )
        if self.within is None:
            return
        zeros = self.sparsity * self.within
        if self.within < 2 or self.scope == "global" or abs(zeros - round(zeros)) > 1e-6 or round(zeros) == self.within:
            raise SpecError(
                "scope='layer' and a whole number of zeros in every few weights, fewer than all",
                given=f"sparsity={self.sparsity}, within={self.within}, scope={self.scope!r}",
                where="Prune",
                fix="2:4 is Prune(0.5, within=4).",
            )


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What to do to which modules.

    Args:
        weight: the weight quantizer; without one nothing would be smaller.
        targets: patterns over module names ("encoder.*"), or roles ("role:stem", "role:classifier"); each must match.
        ignore: patterns or roles left alone, even if `targets` match them; each must match something too.
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


__all__ = [
    "Binary", "Bucket", "Clipped", "Compression", "ExactScale", "Gradient", "Granularity", "LearnedStep", "PerChannel",
    "PerGroup", "PerTensor", "Points", "Prune", "QuantizeAttention", "QuantizeInput", "Quantizer", "ScaleDtype",
    "SplitBinary", "StraightThrough", "Ternary", "Uniform", "quantizer",
]  # fmt: skip
