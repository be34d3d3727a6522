"""Learned step size quantization (LSQ): evenly spaced levels whose step is trained along with the weights.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from bitstill.constraints import Range, check_fields
from bitstill.quant.base import Quantizer, ScaleDtype, State
from bitstill.quant.gradients import apply_function
from bitstill.quant.granularity import Granularity, PerTensor, grid_of
from bitstill.quant.grouping import from_groups, group_mask, group_mean, set_pruned, to_groups
from bitstill.quant.quantized import Plane, Quantized
from bitstill.quant.scales import stored_scale, usable_scale

StepStart = Literal["mean", "error"]
STARTS = 64
"""Number of candidates in the search for the step of least error."""
SMALLEST_STEP = 1e-8
"""Lower bound of a learned step."""


@dataclass(frozen=True)
class LearnedStep(Quantizer):
    """Evenly spaced levels whose step is trained along with the weights (Esser et al. 2020, LSQ).

    The levels are -2^(bits-1) .. 2^(bits-1) - 1 steps, including zero, so that pruned weights need no mask on disk.

    Args:
        bits: 2 to 8.
        granularity: which weights share a step (paper: `PerTensor()`).
        dead_zone: weights within half a step of zero become zero (paper); without it only pruned weights are zero, so that the
            delivered sparsity is exactly the requested one.
        scale_dtype: precision of steps, in training and on disk.
        start: where steps begin: "mean", at 2 mean|w| / sqrt(2^(bits-1) - 1) (paper), or "error", where the squared error is
            least. None is the former with a dead zone and the latter without: there, at 2 bits, the paper's start has a
            relative squared error of 0.99 on Gaussian weights.
    """

    bits: Annotated[int, Range(least=2, most=8)] = 4
    granularity: Granularity = field(default_factory=PerTensor)
    dead_zone: bool = True
    scale_dtype: ScaleDtype = "float32"
    start: StepStart | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{self.bits}-bit learned step"

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """The steps (rows, groups) float32, at their start."""
        steps_RG = initial_steps(weight, mask, bits=self.bits, granularity=self.granularity)
        if self.start == "error" or (self.start is None and not self.dead_zone):
            steps_RG = least_error_steps(
                weight, mask, bits=self.bits, granularity=self.granularity, dead_zone=self.dead_zone, most_RG=steps_RG
            )
        return {"step": State(steps_RG)}

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize `weight` to its levels."""
        step_RG, dtype = state["step"].abs().clamp(min=SMALLEST_STEP), self.torch_scale_dtype
        return uniform_step(
            weight,
            mask,
            bits=self.bits,
            step_RG=step_RG,
            granularity=self.granularity,
            dead_zone=self.dead_zone,
            scale_dtype=dtype,
        )

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to the steps and, between the outer levels, to `weight`."""
        return through_step(state["step"], weight, quantized, effective, passes)


def uniform_step(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    bits: int,
    step_RG: Tensor,
    granularity: Granularity,
    dead_zone: bool = True,
    scale_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Quantization by a given step: q = clamp(round(w / step), -2^(bits-1), 2^(bits-1) - 1) (Esser et al. 2020, LSQ, eq. 1).

    All 2^bits levels are used, zero among them.

    Args:
        weight, mask, granularity, scale_dtype: as `uniform_affine`.
        bits: 2 to 8.
        step_RG: float32 (R, G), positive.
        dead_zone: weights within half a step of zero become zero; else the level of their sign that is nearest to it.

    Returns:
        A `Quantized` of one plane with levels -2^(bits-1) .. 2^(bits-1) - 1 and no offset.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    step_RG = stored_scale(step_RG, scale_dtype)
    low, high = step_levels(bits)
    values = (w_RGK / usable_scale(step_RG).unsqueeze(-1)).round_().clamp_(low, high).add_(0.0)
    if not dead_zone:
        values = torch.where(values == 0, torch.copysign(torch.ones_like(values), w_RGK), values)
    levels = torch.arange(low, high + 1, dtype=torch.float32, device=weight.device)
    return Quantized((Plane(set_pruned(values, mask, grid, 0.0), levels, step_RG),), grid, weight.shape, mask)


def step_levels(bits: int) -> tuple[int, int]:
    """Smallest and largest level of `uniform_step`."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def initial_steps(weight: Tensor, mask: Tensor | None, *, bits: int, granularity: Granularity) -> Tensor:
    """Initial steps of LSQ, 2 mean|w| / sqrt(2^(bits-1) - 1) per group (Esser et al. 2020, section 2.1): (R, G), positive."""
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.detach().float(), grid)
    largest = step_levels(bits)[1]
    return (2.0 * group_mean(w_RGK.abs(), group_mask(mask, grid, weight.device)) / math.sqrt(largest)).clamp(min=SMALLEST_STEP)


def least_error_steps(
    weight: Tensor, mask: Tensor | None, *, bits: int, granularity: Granularity, dead_zone: bool, most_RG: Tensor
) -> Tensor:
    """The steps (R, G), of `STARTS` from 1/16 of `most_RG` to all of it in equal ratios, whose squared error is least."""
    grid = grid_of(weight.shape, granularity)
    w_RGK, mask_RGK = to_groups(weight.detach().float(), grid), group_mask(mask, grid, weight.device)
    best_RG, least_RG = most_RG, torch.full_like(most_RG, math.inf)
    for ratio in torch.logspace(-4, 0, STARTS, base=2.0).tolist():
        step_RG = (most_RG * ratio).clamp(min=SMALLEST_STEP)
        quantized = uniform_step(
            weight.detach(), mask, bits=bits, step_RG=step_RG, granularity=granularity, dead_zone=dead_zone
        )
        error_RGK = (quantized.planes[0].values_RGK * step_RG.unsqueeze(-1) - w_RGK).square()
        error_RG = group_mean(error_RGK, mask_RGK)
        best_RG = torch.where(error_RG < least_RG, step_RG, best_RG)
        least_RG = torch.minimum(error_RG, least_RG)
    return best_RG


def through_step(
    step_RG: Tensor, weight: Tensor, quantized: Quantized, effective: Tensor, passes: Tensor | None = None
) -> Tensor:
    """`effective` in forward; in backward the gradients of learned step size quantization (Esser et al. 2020, eqs. 3 and 5).

    dq/dstep is round(v) - v where v = w / step lies between the outer levels, else the outer level; summed over the group and
    divided by sqrt(weights in the group * largest level). The latent weight's gradient passes where v lies between them.

    Args:
        step_RG: the learned steps; the gradient passes through their rounding for storage.
        weight, effective, passes: as `straight_through`.
        quantized: one plane without an offset, made with these steps; where its mask prunes, steps learn nothing.
    """
    return apply_function(_ThroughStep, step_RG, weight, effective, passes, quantized)


class _ThroughStep(Function):
    @staticmethod
    def forward(
        ctx: Any, step_RG: Tensor, weight: Tensor, effective: Tensor, passes: Tensor | None, quantized: Quantized
    ) -> Tensor:
        plane = quantized.planes[0]
        ctx.save_for_backward(weight, plane.values_RGK, plane.scale_RG, *(() if passes is None else (passes,)))
        ctx.levels, ctx.grid, ctx.mask = plane.levels, quantized.grid, quantized.mask
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, values_RGK, scale_RG, *passes = ctx.saved_tensors
        position = to_groups(weight.float(), ctx.grid) / usable_scale(scale_RG).unsqueeze(-1)
        inside = (position >= ctx.levels[0]) & (position <= ctx.levels[-1])
        upstream = to_groups(grads[0].float(), ctx.grid)
        counted = upstream if ctx.mask is None else upstream * to_groups(ctx.mask, ctx.grid)
        slope = torch.where(inside, values_RGK - position, values_RGK)
        factor = 1.0 / math.sqrt(ctx.grid.size * max(1.0, float(ctx.levels[-1])))
        through = from_groups(upstream * inside, ctx.grid, weight.shape)
        through = through * passes[0] if passes else through
        return (counted * slope).sum(-1) * factor, through.to(weight.dtype), None, None, None
