"""Ternary weights: -1, 0 or +1 times a scale per group.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitstill.constraints import WholeNumber, check_fields
from bitstill.errors import SpecError
from bitstill.quant.base import (
    Clipped,
    OptimizerStep,
    ScaleDtype,
    Splittable,
    SplitWeight,
    State,
    StraightThrough,
    clip,
    inside,
)
from bitstill.quant.binary import Binary
from bitstill.quant.gradients import straight_through, through_scale
from bitstill.quant.granularity import Granularity, PerChannel, grid_of
from bitstill.quant.grouping import group_mask, group_mean, to_groups
from bitstill.quant.quantized import Plane, Quantized
from bitstill.quant.scales import stored_scale, usable_scale
from bitstill.quant.split import SECOND, SplitBinary, split_ternary

CURVATURE = "curvature"
"""Name of the curvature of the loss in the state of a loss-aware `Ternary`."""
SMALLEST_CURVATURE = 1e-8
"""Added as in Adam's denominator, so that means exist for a row whose gradients have all been zero."""
THRESHOLD = 0.7
"""Delta = 0.7 mean|w|: the approximate optimum for normal and uniform weights (Li, Zhang, Liu 2016, eq. 6)."""


@dataclass(frozen=True)
class Ternary(Splittable):
    """-1, 0 or +1 times a scale, threshold at 0.7 of the mean magnitude (TWN): 1.6 bits per weight on disk.

    Args:
        granularity, gradient, scale_dtype, learned_scale: as for `Binary`.
        iterations: alternating steps that then fit levels and scale to the weights (10 in the code of Bai et al. 2021).
        loss_aware: weigh each weight in these steps by the curvature of the loss, estimated by the root of Adam's second moment
            (Hou and Kwok 2018, loss-aware ternarization). The curvature is part of the quantizer's state; your own training
            loop must call `bitstill.train.after_optimizer_step`.
    """

    granularity: Granularity = field(default_factory=PerChannel)
    gradient: StraightThrough | Clipped = field(default_factory=StraightThrough)
    scale_dtype: ScaleDtype = "float32"
    learned_scale: bool = False
    iterations: WholeNumber = 0
    loss_aware: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.loss_aware and not self.iterations:
            given, fix = str(self.iterations), "The published number is 10."
            raise SpecError("at least 1 of the loss-aware iterations", given=given, where="Ternary", fix=fix)

    @property
    def name(self) -> str:
        """Name in reports."""
        return "ternary"

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """Learned scales (rows, groups) float32, initialized by the formula, and the curvature, initialized to 1, if used."""
        state: dict[str, State] = {}
        if self.learned_scale:
            state["scale"] = State(self.quantize(weight, mask, {}).planes[0].scale_RG.clone())
        if self.loss_aware:
            state[CURVATURE] = State(torch.ones_like(weight), "buffer")
        return state

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize `weight` to its three levels."""
        dtype = self.torch_scale_dtype
        return ternary(
            clip(weight, self.gradient),
            mask,
            granularity=self.granularity,
            scale_dtype=dtype,
            scale_RG=state.get("scale"),
            iterations=self.iterations,
            curvature=state.get(CURVATURE),
        )

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to `weight`, and to learned scales."""
        passes = inside(weight, self.gradient, passes)
        if self.learned_scale:
            return through_scale(state["scale"], weight, quantized, effective, passes)
        return straight_through(weight, effective, passes)

    def after_step(self, state: Mapping[str, Tensor], step: OptimizerStep) -> None:
        """Set the curvature to the root of Adam's second moment.

        Raises:
            SpecError: loss-aware weights under an optimizer that has no such moment.
        """
        if not self.loss_aware or step.gradient is None:
            return
        if step.second_moment is None:
            fix = "Train with AdamW, or with loss_aware=False."
            wanted = "an Adam optimizer for loss-aware ternarization"
            raise SpecError(wanted, given=step.optimizer, where=step.layer, fix=fix)
        curvature = state[CURVATURE]
        torch.sqrt(step.second_moment, out=curvature).add_(SMALLEST_CURVATURE)

    def never_updated(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the curvature is still 1 everywhere."""
        return self.loss_aware and bool((state[CURVATURE] == 1).all())

    def split(self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], layer: str) -> SplitWeight:
        """Two binary planes whose sum is the ternary weight.

        Raises:
            SpecError: the scale is learned: no two scales that follow their weights add up to it.
        """
        self._check_scale(f"splitting {layer}")
        clipped, curvature = clip(weight, self.gradient), state.get(CURVATURE)
        quantized = ternary(clipped, mask, granularity=self.granularity, iterations=self.iterations, curvature=curvature)
        first, second = split_ternary(clipped, quantized, loss_aware=curvature is not None)
        return SplitWeight(SplitBinary(self.granularity, self.scale_dtype), first, {SECOND: State(second, "weight")})

    def one_plane(self) -> Binary:
        """The binary quantizer of the same scales.

        Raises:
            SpecError: as `split`.
        """
        self._check_scale("splitting ternary weights")
        return Binary(self.granularity, self.gradient, self.scale_dtype)

    def _check_scale(self, where: str) -> None:
        if self.learned_scale:
            fix = "Train the ternary model with learned_scale=False."
            raise SpecError("scales that follow the weights", given="learned ones", where=where, fix=fix)


def ternary(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    granularity: Granularity,
    scale_dtype: torch.dtype = torch.float32,
    scale_RG: Tensor | None = None,
    iterations: int = 0,
    curvature: Tensor | None = None,
) -> Quantized:
    """Ternary weight network: alpha sign(w) where |w| > 0.7 mean|w|, else 0; alpha = mean|w| over the former.

    Li, Zhang, Liu (2016), eqs. 5 and 6. A group of zeros has no weight above the threshold, and scale 0.

    Args:
        weight, mask, granularity, scale_dtype, scale_RG: those of `binary`.
        iterations: further steps of alternating least squares, each selecting the weights above half the scale (the nearest
            level) and then computing their mean.
        curvature: curvature of the loss, non-negative, in the shape of `weight`, as the weight of each element in means. With
            it the iterations are loss-aware ternarization (Hou and Kwok 2018); None is a curvature of 1 everywhere.

    Returns:
        As `binary`, with levels -1, 0, +1.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    keep = group_mask(mask, grid, weight.device)
    magnitude = w_RGK.abs()
    threshold_RG = THRESHOLD * group_mean(magnitude, keep)
    large = _above(magnitude, threshold_RG, keep)
    curvature_RGK = None if curvature is None else to_groups(curvature.float(), grid)
    for _ in range(iterations):
        large = _above(magnitude, _mean_of(magnitude, large, curvature_RGK) / 2, keep)
    if scale_RG is None:
        scale_RG = _mean_of(magnitude, large, curvature_RGK)
    values = torch.copysign(large, w_RGK).add_(0.0)  # no -0.0, which a stored code cannot represent
    levels = torch.tensor([-1.0, 0.0, 1.0], device=weight.device)
    return Quantized((Plane(values, levels, stored_scale(scale_RG, scale_dtype)),), grid, weight.shape, mask)


def _above(magnitude: Tensor, threshold_RG: Tensor, keep: Tensor | None) -> Tensor:
    """1.0 where an included magnitude is above its group's threshold, else 0.0: (R, G, K)."""
    # In floats: comparison and selection are several times slower than arithmetic on a CPU, noticeable in a training step.
    large = (magnitude - threshold_RG.unsqueeze(-1)).sign_().clamp_(min=0.0)
    return large if keep is None else large * keep


def _mean_of(magnitude: Tensor, large: Tensor, curvature: Tensor | None) -> Tensor:
    """Mean of the magnitudes where `large` is 1, weighed by `curvature`; 0 for a group without any: (R, G)."""
    counts = large if curvature is None else large * curvature
    return (magnitude * counts).sum(-1) / usable_scale(counts.sum(-1))
