"""Gradients through quantizers: what backward pretends while forward returns Q(w) itself.

The forward of each function returns the quantized tensor it was given, untouched. The common spelling
`w + (Q(w) - w).detach()` is not used: it rounds twice and differs from Q(w) in the last bit, so that what is trained would
not be what is delivered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bitstill.quant.granularity import Grid
from bitstill.quant.grouping import from_groups, to_groups
from bitstill.quant.quantized import Quantized
from bitstill.quant.scales import usable


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, effective: Tensor, passes: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if passes is None else (passes,)))
        ctx.dtype = weight.dtype
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        for passes in ctx.saved_tensors:
            grad = grad * passes
        return grad.to(ctx.dtype), None, None


class _ToBoth(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, effective: Tensor, passes: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if passes is None else (passes,)))
        ctx.dtypes = first.dtype, second.dtype
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        for passes in ctx.saved_tensors:
            grad = grad * passes
        return grad.to(ctx.dtypes[0]), grad.to(ctx.dtypes[1]), None, None


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


class _ThroughScale(Function):
    @staticmethod
    def forward(
        ctx: Any, scale_RG: Tensor, weight: Tensor, effective: Tensor, passes: Tensor | None, quantized: Quantized
    ) -> Tensor:
        ctx.save_for_backward(quantized.planes[0].values_RGK, *(() if passes is None else (passes,)))
        ctx.grid, ctx.mask, ctx.dtype = quantized.grid, quantized.mask, weight.dtype
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values_RGK, *passes = ctx.saved_tensors
        counted = grads[0].float() if ctx.mask is None else grads[0].float() * ctx.mask
        through = grads[0] * passes[0] if passes else grads[0]
        return (to_groups(counted, ctx.grid) * values_RGK).sum(-1), through.to(ctx.dtype), None, None, None


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
        position = to_groups(weight.float(), ctx.grid) / usable(scale_RG).unsqueeze(-1)
        inside = (position >= ctx.levels[0]) & (position <= ctx.levels[-1])
        upstream = to_groups(grads[0].float(), ctx.grid)
        counted = upstream if ctx.mask is None else upstream * to_groups(ctx.mask, ctx.grid)
        slope = torch.where(inside, values_RGK - position, values_RGK)
        factor = 1.0 / math.sqrt(ctx.grid.size * max(1.0, float(ctx.levels[-1])))
        through = from_groups(upstream * inside, ctx.grid, weight.shape)
        through = through * passes[0] if passes else through
        return (counted * slope).sum(-1) * factor, through.to(weight.dtype), None, None, None


class _ThroughPoints(Function):
    @staticmethod
    def forward(ctx: Any, points_L: Tensor, weight: Tensor, effective: Tensor, quantized: Quantized) -> Tensor:
        plane = quantized.planes[0]
        ctx.save_for_backward(plane.codes_RGK(), plane.scale_RG, points_L.argsort(stable=True))
        ctx.grid, ctx.mask = quantized.grid, quantized.mask
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes_RGK, scale_RG, order_L = ctx.saved_tensors
        grad = grads[0].float() if ctx.mask is None else grads[0].float() * ctx.mask
        weighted = to_groups(grad, ctx.grid) * scale_RG.unsqueeze(-1)
        sums_L = torch.zeros(order_L.numel(), device=grad.device)
        # bincount adds in a fixed order on CPU; index_add_ with threads would not.
        sums_L += torch.bincount(codes_RGK.flatten().long(), weighted.flatten().double(), order_L.numel()).float()
        through = grad.to(grads[0].dtype)
        return torch.zeros_like(sums_L).index_put((order_L,), sums_L), through, None, None


def _apply(function: type[Function], *arguments: object) -> Tensor:
    apply: Callable[..., Tensor] = function.apply
    return apply(*arguments)


def straight_through(weight: Tensor, effective: Tensor, passes: Tensor | None = None) -> Tensor:
    """`effective` in forward; in backward its gradient goes to `weight` unchanged (Bengio et al. 2013), times `passes`.

    Args:
        weight: the latent weight.
        effective: Q(weight), same shape, no gradient.
        passes: bool of the same shape, False where no gradient shall pass; None passes all.
    """
    return _apply(_StraightThrough, weight, effective, passes)


def to_both(first: Tensor, second: Tensor, effective: Tensor, passes: Tensor | None = None) -> Tensor:
    """As `straight_through`, for a sum of two quantized weights: each latent weight receives the gradient of the sum.

    Args:
        first, second: the latent weights, of one shape.
        effective: Q(first) + Q(second), same shape, no gradient.
        passes: as `straight_through`.
    """
    return _apply(_ToBoth, first, second, effective, passes)


def exact_scale(weight: Tensor, quantized: Quantized, effective: Tensor, passes: Tensor | None = None) -> Tensor:
    """As `straight_through`, plus the exact derivative through each group's minimum and maximum.

    With v the scaled weight and q its rounded value, c = sum_j g_j (q_j - v_j): the gradient at the largest weight of a
    group gains c and at the smallest loses c (chain rule through alpha and beta; Polino et al.'s "complicated" rule).
    """
    return _apply(_ExactScale, weight, effective, passes, quantized.grid)


def through_scale(
    scale_RG: Tensor, weight: Tensor, quantized: Quantized, effective: Tensor, passes: Tensor | None = None
) -> Tensor:
    """`effective` in forward; in backward dL/dscale = sum over the group of level * dL/dq, and straight through to `weight`.

    Args:
        scale_RG: the learned scales; the gradient passes through their rounding for storage.
        weight, effective, passes: as `straight_through`.
        quantized: one plane without an offset, made with these scales.
    """
    return _apply(_ThroughScale, scale_RG, weight, effective, passes, quantized)


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
    return _apply(_ThroughStep, step_RG, weight, effective, passes, quantized)


def through_points(points_L: Tensor, weight: Tensor, quantized: Quantized, effective: Tensor) -> Tensor:
    """`effective` in forward; in backward dL/dp_j = sum over weights at point j of their group's range * dL/dq.

    Polino et al. (2018), section 4.1. The latent weight receives the straight-through gradient, none where it is pruned;
    it is ignored where the recipe freezes it.
    """
    return _apply(_ThroughPoints, points_L, weight, effective, quantized)


def _add_range_gradient(grad: Tensor, weight: Tensor, effective: Tensor, keep: Tensor | None, grid: Grid) -> Tensor:
    """Chain rule through the minimum and the maximum of each group: q - v is (effective - weight) / range."""
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


class _Round(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _ScaleGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest, ties to even; the gradient passes unchanged."""
    return _apply(_Round, x)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` in forward; its gradient times `factor` in backward."""
    return _apply(_ScaleGradient, x, factor)
