"""What is to be done to weights and inputs, as data: frozen, validated, comparable, without a tensor in it.

Each weight quantizer names its numbers here and calls one pure function of `ops`. A new one is a dataclass with the methods
of `Quantizer`, a line in the `Quantizer` union, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bitstill.errors import SpecError
from bitstill.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor
from bitstill.ops import ste
from bitstill.ops.binary import binary
from bitstill.ops.points import initial_points, nearest_points
from bitstill.ops.quantized import Quantized
from bitstill.ops.ternary import ternary
from bitstill.ops.uniform import uniform_affine, uniform_symmetric

Learned = Mapping[str, Tensor]
ScaleDtype = Literal["float32", "float16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class StraightThrough:
    """The gradient of Q(w) goes to w unchanged (Bengio et al. 2013)."""


@dataclass(frozen=True)
class Clipped:
    """w is clipped to [-bound, bound] before it is quantized, and no gradient passes outside."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise SpecError("a bound above 0", given=str(self.bound), where="Clipped", fix="The published value is 1.0.")


@dataclass(frozen=True)
class ExactScale:
    """Straight through, plus the exact derivative through each group's minimum and maximum (`Uniform`, affine only)."""


Gradient = StraightThrough | Clipped | ExactScale


@dataclass(frozen=True)
class Uniform:
    """Evenly spaced levels.

    Args:
        bits: 1 to 8 (symmetric: 2 to 8).
        symmetric: levels -n..n about zero; else from the group's minimum to its maximum.
        granularity: which weights share a scale.
        rounding: "stochastic" acts while training; what is frozen is always rounded to nearest.
        gradient: what backward does.
        scale_dtype: precision of scales and offsets, in training and on disk.
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = PerGroup(128)
    rounding: Literal["nearest", "stochastic"] = "nearest"
    gradient: Gradient = field(default_factory=StraightThrough)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        least = 2 if self.symmetric else 1
        if not least <= self.bits <= 8:
            raise SpecError(
                f"bits from {least} to 8",
                given=str(self.bits),
                where="Uniform",
                fix="For 1 bit use Binary, or Uniform with symmetric=False.",
            )
        if self.symmetric and isinstance(self.gradient, ExactScale):
            raise SpecError(
                "an affine quantizer for the exact-scale gradient",
                given="symmetric=True",
                where="Uniform",
                fix="Set symmetric=False or use StraightThrough().",
            )

    @property
    def levels(self) -> int:
        """Number of distinct levels."""
        return int(2**self.bits) - (1 if self.symmetric else 0)

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.bits}-bit {'symmetric' if self.symmetric else 'affine'}"

    def initial(self, weight: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Nothing is learned besides the weight."""
        return {}

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` on its levels; `training` lets stochastic rounding act."""
        function = uniform_symmetric if self.symmetric else uniform_affine
        return function(
            _clip(weight, self.gradient),
            mask,
            bits=self.bits,
            granularity=self.granularity,
            stochastic=training and self.rounding == "stochastic",
            scale_dtype=_DTYPES[self.scale_dtype],
        )

    def differentiable(self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned) -> Tensor:
        """`effective` with a gradient to `weight`."""
        if isinstance(self.gradient, ExactScale):
            return ste.exact_scale(weight, quantized, effective, quantized.mask)
        return _through(weight, quantized, effective, self.gradient)


@dataclass(frozen=True)
class Binary:
    """sign(w) times the mean magnitude of the group: 1 bit per weight.

    Args: `granularity`, `gradient` (not `ExactScale`), `scale_dtype` as for `Uniform`; `learned_scale` trains the scales
    beside the weights, starting at those of the formula.
    """

    granularity: Granularity = field(default_factory=PerChannel)
    gradient: StraightThrough | Clipped = field(default_factory=StraightThrough)
    scale_dtype: ScaleDtype = "float32"
    learned_scale: bool = False

    @property
    def levels(self) -> int:
        """Number of distinct levels."""
        return 2

    @property
    def name(self) -> str:
        """How reports call it."""
        return "binary"

    def initial(self, weight: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The scales (rows, groups) float32, where they are learned: those the formula gives at the start."""
        if not self.learned_scale:
            return {}
        return {"scale": self.quantize(weight, mask, {}).planes[0].scale_RG.clone()}

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` on its two levels."""
        dtype = _DTYPES[self.scale_dtype]
        clipped, scale_RG = _clip(weight, self.gradient), learned.get("scale")
        return binary(clipped, mask, granularity=self.granularity, scale_dtype=dtype, scale_RG=scale_RG)

    def differentiable(self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned) -> Tensor:
        """`effective` with a gradient to `weight`, and to learned scales."""
        passes = _passes(weight, quantized, self.gradient)
        if self.learned_scale:
            return ste.through_scale(learned["scale"], weight, quantized, effective, passes)
        return ste.straight_through(weight, effective, passes)


@dataclass(frozen=True)
class Ternary:
    """-1, 0 or +1 times a scale, threshold at 0.7 of the mean magnitude (TWN): 1.6 bits per weight on disk.

    Args: as for `Binary`.
    """

    granularity: Granularity = field(default_factory=PerChannel)
    gradient: StraightThrough | Clipped = field(default_factory=StraightThrough)
    scale_dtype: ScaleDtype = "float32"
    learned_scale: bool = False

    @property
    def levels(self) -> int:
        """Number of distinct levels."""
        return 3

    @property
    def name(self) -> str:
        """How reports call it."""
        return "ternary"

    def initial(self, weight: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The scales (rows, groups) float32, where they are learned: those the formula gives at the start."""
        if not self.learned_scale:
            return {}
        return {"scale": self.quantize(weight, mask, {}).planes[0].scale_RG.clone()}

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` on its three levels."""
        dtype = _DTYPES[self.scale_dtype]
        clipped, scale_RG = _clip(weight, self.gradient), learned.get("scale")
        return ternary(clipped, mask, granularity=self.granularity, scale_dtype=dtype, scale_RG=scale_RG)

    def differentiable(self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned) -> Tensor:
        """`effective` with a gradient to `weight`, and to learned scales."""
        passes = _passes(weight, quantized, self.gradient)
        if self.learned_scale:
            return ste.through_scale(learned["scale"], weight, quantized, effective, passes)
        return ste.straight_through(weight, effective, passes)


@dataclass(frozen=True)
class Points:
    """Learned points, one list per tensor, in each group's range scaled to [0, 1] (Polino et al. 2018, section 4).

    Args:
        count: number of points, 2 to 256, a power of two or not; redistribution may change it per tensor.
        init: "quantiles" of the scaled weights, or "uniform" spacing.
        granularity: which weights share a range.
        scale_dtype: precision of ranges and minima.
    """

    count: int = 16
    init: Literal["quantiles", "uniform"] = "quantiles"
    granularity: Granularity = Bucket(256)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.count <= 256:
            raise SpecError("2 to 256 points", given=str(self.count), where="Points", fix="4 points are 2 bits, 16 are 4 bits.")

    @property
    def levels(self) -> int:
        """Number of points before any redistribution."""
        return self.count

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.count} points"

    def initial(self, weight: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The points, (count,) float32."""
        points = initial_points(
            weight.detach(), mask, count=self.count, granularity=self.granularity, quantiles=self.init == "quantiles"
        )
        return {"points": points}

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` on its nearest points."""
        dtype = _DTYPES[self.scale_dtype]
        return nearest_points(weight, mask, points_L=learned["points"], granularity=self.granularity, scale_dtype=dtype)

    def differentiable(self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned) -> Tensor:
        """`effective` with a gradient to the points and, straight through, to `weight`."""
        return ste.through_points(learned["points"], weight, quantized, effective)


Quantizer = Uniform | Binary | Ternary | Points


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
class Prune:
    """Keep the weights of largest magnitude.

    Args:
        sparsity: fraction of zeros in each layer, 0 to below 1.
    """

    sparsity: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise SpecError(
                "a sparsity of at least 0 and below 1",
                given=str(self.sparsity),
                where="Prune",
                fix="It is the fraction of zeros: 0.9 keeps one weight in ten.",
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


def quantizer(
    bits: int | Literal["ternary"],
    granularity: Granularity,
    *,
    scale_dtype: ScaleDtype = "float32",
    learned_scale: bool = False,
) -> Quantizer:
    """The usual quantizer for a number of bits: 1 is `Binary`, "ternary" is `Ternary`, 2 to 8 are affine `Uniform`.

    Raises:
        SpecError: learned scales for `Uniform`, whose ranges follow the weights.
    """
    if bits == "ternary":
        return Ternary(granularity=granularity, scale_dtype=scale_dtype, learned_scale=learned_scale)
    if bits == 1:
        return Binary(granularity=granularity, scale_dtype=scale_dtype, learned_scale=learned_scale)
    if learned_scale:
        fix = "At 2 to 8 bits a range follows its weights; Points learns where levels lie."
        raise SpecError("1 bit or ternary for learned scales", given=f"{bits} bits", where="quantizer", fix=fix)
    return Uniform(bits=bits, granularity=granularity, scale_dtype=scale_dtype)


def _clip(weight: Tensor, gradient: Gradient) -> Tensor:
    return weight.clamp(-gradient.bound, gradient.bound) if isinstance(gradient, Clipped) else weight


def _through(weight: Tensor, quantized: Quantized, effective: Tensor, gradient: Gradient) -> Tensor:
    return ste.straight_through(weight, effective, _passes(weight, quantized, gradient))


def _passes(weight: Tensor, quantized: Quantized, gradient: Gradient) -> Tensor | None:
    """Where the gradient reaches the latent weight: not where it is pruned or clipped; None is everywhere."""
    if not isinstance(gradient, Clipped):
        return quantized.mask
    inside = weight.detach().abs() <= gradient.bound
    return inside if quantized.mask is None else quantized.mask & inside


__all__ = [
    "Binary", "Bucket", "Clipped", "Compression", "ExactScale", "Gradient", "Granularity", "PerChannel", "PerGroup",
    "PerTensor", "Points", "Prune", "QuantizeInput", "Quantizer", "StraightThrough", "Ternary", "Uniform", "quantizer",
]  # fmt: skip
