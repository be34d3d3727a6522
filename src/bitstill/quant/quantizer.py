"""Weight quantizers as data: frozen, validated, comparable, without a tensor in it.

Each names its numbers here and calls one pure function of `ops`. A new one is a dataclass with the methods that the others
have, a line in the `Quantizer` union, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bitstill.errors import SpecError
from bitstill.quant import gradients as ste
from bitstill.quant.binary import binary
from bitstill.quant.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor
from bitstill.quant.points import initial_points, nearest_points
from bitstill.quant.quantized import Quantized
from bitstill.quant.ternary import ternary
from bitstill.quant.uniform import SMALLEST_STEP, initial_steps, uniform_affine, uniform_step, uniform_symmetric

Learned = Mapping[str, Tensor]
ScaleDtype = Literal["float32", "float16"]
SECOND = "second"
"""The name of a second latent weight among a quantizer's learned tensors; unlike the others it is a weight."""
CURVATURE = "curvature"
"""The name of the curvature of the loss among them, which follows the optimizer and is not trained itself."""
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

    def differentiable(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned, passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to `weight`, where `passes` lets it (None: everywhere)."""
        if isinstance(self.gradient, ExactScale):
            return ste.exact_scale(weight, quantized, effective, passes)
        return ste.straight_through(weight, effective, _inside(weight, self.gradient, passes))


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
        return _initial_scales(self, weight, mask)

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` on its two levels."""
        dtype = _DTYPES[self.scale_dtype]
        clipped, scale_RG = _clip(weight, self.gradient), learned.get("scale")
        return binary(clipped, mask, granularity=self.granularity, scale_dtype=dtype, scale_RG=scale_RG)

    def differentiable(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned, passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to `weight`, and to learned scales."""
        return _through_scales(self, weight, quantized, effective, learned, passes)


@dataclass(frozen=True)
class Ternary:
    """-1, 0 or +1 times a scale, threshold at 0.7 of the mean magnitude (TWN): 1.6 bits per weight on disk.

    Args:
        granularity, gradient, scale_dtype, learned_scale: as for `Binary`.
        iterations: alternating steps that fit levels and scale to the weights from there (10 in Bai et al.'s 2021 code).
        loss_aware: these steps weigh each weight by the curvature of the loss, for which the root of Adam's second moment
            stands (Hou and Kwok 2018, loss-aware ternarization): where the loss feels a weight more, its error counts more. The
            curvature is kept beside the weight while it trains, and never delivered. A training loop of your own calls
            `bitstill.Following`.
    """

    granularity: Granularity = field(default_factory=PerChannel)
    gradient: StraightThrough | Clipped = field(default_factory=StraightThrough)
    scale_dtype: ScaleDtype = "float32"
    learned_scale: bool = False
    iterations: int = 0
    loss_aware: bool = False

    def __post_init__(self) -> None:
        if self.iterations < int(self.loss_aware):
            wanted = "iterations of at least 1 where they are loss-aware" if self.loss_aware else "iterations of at least 0"
            fix = "0 is the plain threshold; the published number is 10."
            raise SpecError(wanted, given=str(self.iterations), where="Ternary", fix=fix)

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
        return _initial_scales(self, weight, mask)

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` on its three levels."""
        dtype = _DTYPES[self.scale_dtype]
        return ternary(
            _clip(weight, self.gradient),
            mask,
            granularity=self.granularity,
            scale_dtype=dtype,
            scale_RG=learned.get("scale"),
            iterations=self.iterations,
            curvature=learned.get(CURVATURE),
        )

    def differentiable(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned, passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to `weight`, and to learned scales."""
        return _through_scales(self, weight, quantized, effective, learned, passes)


@dataclass(frozen=True)
class SplitBinary:
    """Two binary planes that are added up, each with a latent weight of its own: 2 bits per weight.

    Made of ternary weights without changing them (Bai et al. 2021, ternary weight splitting: `surgery.splitting`). On other
    weights the second plane starts as what the first leaves over.

    Args: as for `Binary`.
    """

    granularity: Granularity = field(default_factory=PerChannel)
    scale_dtype: ScaleDtype = "float32"

    @property
    def levels(self) -> int:
        """Number of distinct levels."""
        return 4

    @property
    def name(self) -> str:
        """How reports call it."""
        return "split binary"

    def initial(self, weight: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The second latent weight, of the first one's shape."""
        return {SECOND: weight.float() - self._plane(weight, mask).dequantize()}

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` and the second latent weight, each on its two levels."""
        first, second = self._plane(weight, mask), self._plane(learned[SECOND], mask)
        return Quantized((*first.planes, *second.planes), first.grid, first.shape, mask)

    def differentiable(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned, passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to both latent weights."""
        return ste.to_both(weight, learned[SECOND], effective, passes)

    def _plane(self, weight: Tensor, mask: Tensor | None) -> Quantized:
        return binary(weight, mask, granularity=self.granularity, scale_dtype=_DTYPES[self.scale_dtype])


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

    def differentiable(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned, passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to the points and, straight through, to `weight`."""
        return ste.through_points(learned["points"], weight, quantized, effective)


@dataclass(frozen=True)
class LearnedStep:
    """Evenly spaced levels at a distance that is learned beside the weights (Esser et al. 2020, LSQ).

    The levels are -2^(bits-1) .. 2^(bits-1) - 1 steps, zero among them, so that pruned weights need no mask on disk.

    Args:
        bits: 2 to 8.
        granularity: which weights share a step (paper: `PerTensor()`).
        dead_zone: weights within half a step of zero become zero (paper); without it only pruned weights are zero, so that the
            sparsity of what is delivered is exactly the one that was asked for.
        scale_dtype: precision of steps, in training and on disk.
    """

    bits: int = 4
    granularity: Granularity = field(default_factory=PerTensor)
    dead_zone: bool = True
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            fix = "For 1 bit use Binary."
            raise SpecError("bits from 2 to 8", given=str(self.bits), where="LearnedStep", fix=fix)

    @property
    def levels(self) -> int:
        """Number of distinct levels."""
        return int(2**self.bits)

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.bits}-bit learned step"

    def initial(self, weight: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The steps (rows, groups) float32 at which the paper starts."""
        return {"step": initial_steps(weight, mask, bits=self.bits, granularity=self.granularity)}

    def quantize(self, weight: Tensor, mask: Tensor | None, learned: Learned, *, training: bool = False) -> Quantized:
        """`weight` on its levels."""
        step_RG, dtype = learned["step"].abs().clamp(min=SMALLEST_STEP), _DTYPES[self.scale_dtype]
        return uniform_step(
            weight,
            mask,
            bits=self.bits,
            step_RG=step_RG,
            granularity=self.granularity,
            dead_zone=self.dead_zone,
            scale_dtype=dtype,
        )

    def differentiable(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned, passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to the steps and, between the outer levels, to `weight`."""
        return ste.through_step(learned["step"], weight, quantized, effective, passes)


Quantizer = Uniform | Binary | Ternary | SplitBinary | Points | LearnedStep


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


def _initial_scales(spec: Binary | Ternary, weight: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    if not spec.learned_scale:
        return {}
    return {"scale": spec.quantize(weight, mask, {}).planes[0].scale_RG.clone()}


def _through_scales(
    spec: Binary | Ternary, weight: Tensor, quantized: Quantized, effective: Tensor, learned: Learned, passes: Tensor | None
) -> Tensor:
    passes = _inside(weight, spec.gradient, passes)
    if spec.learned_scale:
        return ste.through_scale(learned["scale"], weight, quantized, effective, passes)
    return ste.straight_through(weight, effective, passes)


def _clip(weight: Tensor, gradient: Gradient) -> Tensor:
    return weight.clamp(-gradient.bound, gradient.bound) if isinstance(gradient, Clipped) else weight


def _inside(weight: Tensor, gradient: Gradient, passes: Tensor | None) -> Tensor | None:
    """`passes`, and only where the weight is not clipped; None is everywhere."""
    if not isinstance(gradient, Clipped):
        return passes
    inside = weight.detach().abs() <= gradient.bound
    return inside if passes is None else passes & inside
