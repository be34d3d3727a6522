"""Uniform quantization: evenly spaced levels, over the range of each group or of least squared error, affine or symmetric.

Legend: R rows, G groups per row, K weights per group. All arithmetic is float32, regardless of autocast.
Adding 0.0 turns a -0.0 from rounding into +0.0, to which the stored code decodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from bitstill.constraints import Range, check_fields
from bitstill.errors import SpecError
from bitstill.quant.base import ExactScale, Gradient, Quantizer, ScaleDtype, StraightThrough, clip, inside
from bitstill.quant.gradients import apply_function, straight_through
from bitstill.quant.granularity import Granularity, Grid, PerGroup, grid_of
from bitstill.quant.grouping import from_groups, group_extremes, group_mask, set_pruned, to_groups
from bitstill.quant.least_squares import Problem, least_squares
from bitstill.quant.quantized import Plane, Quantized
from bitstill.quant.scales import stored_scale, usable_scale
from bitstill.quant.zero_level import holds_zero, level_at_zero

Fit = Literal["range", "least-squares"]
"""Rule by which scales and offsets are computed from weights."""

SMALLEST_RANGE = 1e-10
"""A group whose range is smaller counts as constant (the guard of Polino et al.'s code)."""


@dataclass(frozen=True)
class Uniform(Quantizer):
    """Evenly spaced levels.

    Args:
        bits: 1 to 8 (symmetric: 2 to 8).
        symmetric: levels -n..n about zero; else from the group's minimum to its maximum.
        granularity: which weights share a scale.
        rounding: "stochastic" applies in training only; freezing always rounds to nearest.
        gradient: gradient rule.
        scale_dtype: precision of scales and offsets, in training and on disk.
        fit: "range" spreads the levels over all weights of a group. "least-squares" chooses scale and offset of least squared
            error, which cuts the largest weights off: much better at 2 to 4 bits where nothing is trained afterwards, and much
            slower.
    """

    bits: Annotated[int, Range(least=1, most=8)] = 8
    symmetric: bool = False
    granularity: Granularity = PerGroup(128)
    rounding: Literal["nearest", "stochastic"] = "nearest"
    gradient: Gradient = field(default_factory=StraightThrough)
    scale_dtype: ScaleDtype = "float32"
    fit: Fit = "range"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.symmetric and self.bits == 1:
            fix = "For 1 bit use Binary, or Uniform with symmetric=False."
            raise SpecError("bits from 2 to 8", given="1", where="Uniform", fix=fix)
        if self.symmetric and isinstance(self.gradient, ExactScale):
            raise SpecError(
                "an affine quantizer for the exact-scale gradient",
                given="symmetric=True",
                where="Uniform",
                fix="Set symmetric=False or use StraightThrough().",
            )
        if self.fit != "range" and isinstance(self.gradient, ExactScale):
            fix = "Set fit='range' or use StraightThrough()."
            raise SpecError("fit='range' for the exact-scale gradient", given=repr(self.fit), where="Uniform", fix=fix)

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{self.bits}-bit {'symmetric' if self.symmetric else 'affine'}"

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize `weight` to its levels; `training` enables stochastic rounding."""
        function = uniform_symmetric if self.symmetric else uniform_affine
        return function(
            clip(weight, self.gradient),
            mask,
            bits=self.bits,
            granularity=self.granularity,
            stochastic=training and self.rounding == "stochastic",
            scale_dtype=self.torch_scale_dtype,
            fit=self.fit,
        )

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to `weight`, where `passes` lets it (None: everywhere)."""
        if isinstance(self.gradient, ExactScale):
            return exact_scale(weight, quantized, effective, passes)
        return straight_through(weight, effective, inside(weight, self.gradient, passes))


def uniform_affine(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    bits: int,
    granularity: Granularity,
    stochastic: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    fit: Fit = "range",
) -> Quantized:
    """Min-max quantization to 2^bits levels: q = round((w - min) / step), step = (max - min) / (2^bits - 1).

    Polino, Pascanu, Alistarh (2018), section 3.1: linear scaling; stochastic rounding is its eq. for Q with E[q] = w.
    A constant group has step 1 and all codes 0, so its minimum reproduces it exactly. Where a weight is exactly zero, the
    levels of its group are shifted by up to half a step (in float16 also stretched), so that zero is one of them.

    Args:
        weight: float tensor of any shape.
        mask: bool of the same shape, False where pruned; pruned weights take no part in min and max.
        bits: 1 to 8.
        granularity: which weights share a scale and an offset.
        stochastic: round up with probability equal to the remainder, instead of to nearest (ties to even).
        scale_dtype: precision in which scale and offset are kept.
        fit: "range", or "least-squares" for step and offset of least squared error.

    Returns:
        A `Quantized` of one plane with levels 0 .. 2^bits - 1, a scale (the step) and an offset (the minimum).
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK, keep = to_groups(weight.float(), grid), group_mask(mask, grid, weight.device)
    low_RG, high_RG = group_extremes(w_RGK, keep)
    top = 2**bits - 1
    range_RG = high_RG - low_RG
    constant_RG, at_zero_RG = range_RG < SMALLEST_RANGE, holds_zero(w_RGK, keep)
    step_RG = torch.where(constant_RG, 1.0, range_RG / top)
    low_RG = torch.where(constant_RG & at_zero_RG, 0.0, low_RG)

    def stored(step: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        near_step, near_offset = level_at_zero(usable_scale(step), offset, top, scale_dtype)
        step, offset = stored_scale(step, scale_dtype), stored_scale(offset, scale_dtype)
        return torch.where(at_zero_RG, near_step, step), torch.where(at_zero_RG, near_offset, offset)

    if fit == "range":
        step_RG, low_RG = stored(step_RG, low_RG)
    else:
        step_RG, low_RG = least_squares(Problem(w_RGK, keep, 0, top, at_zero_RG, stored), step_RG, low_RG)
    position = (w_RGK - low_RG.unsqueeze(-1)) / usable_scale(step_RG).unsqueeze(-1)
    values = set_pruned(_round(position, stochastic).clamp_(0, top).add_(0.0), mask, grid, 0.0)
    levels = torch.arange(top + 1, dtype=torch.float32, device=weight.device)
    return Quantized((Plane(values, levels, step_RG, low_RG),), grid, weight.shape, mask)


def uniform_symmetric(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    bits: int,
    granularity: Granularity,
    stochastic: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    fit: Fit = "range",
) -> Quantized:
    """Quantization to the 2^bits - 1 levels -n..n with n = 2^(bits-1) - 1: q = round(w / step), step = max|w| / n.

    The narrow-range convention (Zhang et al. 2020, TernaryBERT): zero is a level and +max is not clipped, so that pruned
    weights need no mask on disk. At 2 bits the three levels are -max, 0, max.

    Args, returns: as `uniform_affine`, with bits from 2 to 8, signed levels and no offset.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK, keep = to_groups(weight.float(), grid), group_mask(mask, grid, weight.device)
    low_RG, high_RG = group_extremes(w_RGK, keep)
    n = 2 ** (bits - 1) - 1
    step_RG = torch.maximum(high_RG.abs(), low_RG.abs()) / n
    if fit == "range":
        step_RG = stored_scale(step_RG, scale_dtype)
    else:
        zero_RG = torch.zeros_like(step_RG)
        problem = Problem(w_RGK, keep, -n, n, zero_RG == 0, lambda step, offset: (stored_scale(step, scale_dtype), zero_RG))
        step_RG, _ = least_squares(problem, step_RG, zero_RG)
    values = _round(w_RGK / usable_scale(step_RG).unsqueeze(-1), stochastic).clamp_(-n, n).add_(0.0)
    levels = torch.arange(-n, n + 1, dtype=torch.float32, device=weight.device)
    return Quantized((Plane(set_pruned(values, mask, grid, 0.0), levels, step_RG),), grid, weight.shape, mask)


def exact_scale(weight: Tensor, quantized: Quantized, effective: Tensor, passes: Tensor | None = None) -> Tensor:
    """Like `straight_through`, plus the exact derivative through each group's min and max.

    With v the scaled weight and q its rounded value, c = sum_j g_j (q_j - v_j): the gradient at the largest weight of a
    group gains c and at the smallest loses c (chain rule through alpha and beta; Polino et al.'s "complicated" rule).
    """
    return apply_function(_ExactScale, weight, effective, passes, quantized.grid)


class _ExactScale(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, effective: Tensor, passes: Tensor | None, grid: Grid) -> Tensor:
        ctx.save_for_backward(weight, effective, *(() if passes is None else (passes,)))
        ctx.grid = grid
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, effective, *passes = ctx.saved_tensors
        grad = grads[0] * passes[0] if passes else grads[0]
        return _add_range_gradient(grad, weight, effective, passes[0] if passes else None, ctx.grid), None, None, None


def _add_range_gradient(grad: Tensor, weight: Tensor, effective: Tensor, keep: Tensor | None, grid: Grid) -> Tensor:
    """Chain rule through the min and max of each group: q - v is (effective - weight) / range."""
    w_RGK, g_RGK = to_groups(weight.float(), grid), to_groups(grad.float(), grid)
    error_RGK = to_groups(effective.float(), grid) - w_RGK
    counts = torch.ones_like(weight, dtype=torch.bool) if keep is None else keep
    valid = to_groups(counts, grid)
    high = torch.where(valid, w_RGK, -torch.inf)
    low = torch.where(valid, w_RGK, torch.inf)
    range_RG = (high.amax(-1) - low.amin(-1)).clamp(min=0)
    flat = range_RG < 1e-10
    c_RG = torch.where(flat, 0.0, (g_RGK * error_RGK * valid).sum(-1) / torch.where(flat, 1.0, range_RG))
    extra = torch.zeros_like(g_RGK)
    extra.scatter_add_(-1, high.argmax(-1, keepdim=True), c_RG.unsqueeze(-1))
    extra.scatter_add_(-1, low.argmin(-1, keepdim=True), -c_RG.unsqueeze(-1))
    return grad + from_groups(extra, grid, weight.shape).to(grad.dtype)


def _round(x: Tensor, stochastic: bool) -> Tensor:
    if not stochastic:
        return torch.round(x)
    below = torch.floor(x)
    return below + (torch.rand_like(x) < x - below)
