"""Learned quantization points: levels at arbitrary positions in [0, 1] of each group's range, shared by the whole tensor.

Differentiable quantization (Polino, Pascanu, Alistarh 2018, section 4) trains the points and keeps the weights fixed.
The number of points need not be a power of two.

Legend: R rows, G groups per row, K weights per group, L points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from bitstill.constraints import Range, check_fields
from bitstill.quant.base import CountedLevels, OptimizerStep, ScaleDtype, State
from bitstill.quant.gradients import apply_function
from bitstill.quant.granularity import Bucket, Granularity, grid_of
from bitstill.quant.grouping import group_extremes, group_mask, set_pruned, to_groups
from bitstill.quant.quantized import Plane, Quantized
from bitstill.quant.scales import stored_scale, usable_scale
from bitstill.quant.uniform import SMALLEST_RANGE


@dataclass(frozen=True)
class Points(CountedLevels):
    """Learned points, one list per tensor, in each group's range scaled to [0, 1] (Polino et al. 2018, section 4).

    Args:
        count: number of points, 2 to 256, a power of two or not; redistribution may change it per tensor.
        init: "quantiles" of the scaled weights, or "uniform" spacing.
        granularity: which weights share a range.
        scale_dtype: precision of ranges and minima.
    """

    count: Annotated[int, Range(least=2, most=256)] = 16
    init: Literal["quantiles", "uniform"] = "quantiles"
    granularity: Granularity = Bucket(256)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{self.count} points"

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """Initial points, (count,) float32."""
        return self.with_count(weight, mask, self.count)

    def count_of(self, state: Mapping[str, Tensor]) -> int:
        """Number of points."""
        return state["points"].numel()

    def with_count(self, weight: Tensor, mask: Tensor | None, count: int) -> dict[str, State]:
        """Like `initial_state`, with `count` points."""
        quantiles = self.init == "quantiles"
        points = initial_points(weight, mask, count=count, granularity=self.granularity, quantiles=quantiles)
        return {"points": State(points, per_row=False)}

    def after_step(self, state: Mapping[str, Tensor], step: OptimizerStep) -> None:
        """Sort the points in ascending order."""
        state["points"].copy_(state["points"].sort().values)

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize `weight` to the nearest points."""
        dtype = self.torch_scale_dtype
        return nearest_points(weight, mask, points_L=state["points"], granularity=self.granularity, scale_dtype=dtype)

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to the points and, straight through, to `weight`."""
        return through_points(state["points"], weight, quantized, effective)


def nearest_points(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    points_L: Tensor,
    granularity: Granularity,
    scale_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Round each weight, scaled to [0, 1] by its group's range, to the nearest point (a tie goes to the lower one).

    w -> min + (max - min) * nearest point (Polino et al. 2018, section 4.1).

    Args:
        weight: float tensor of any shape.
        mask: bool of the same shape, False where pruned.
        points_L: float32 (L,), 2 <= L <= 256, in any order.
        granularity: which weights share a range.
        scale_dtype: precision in which range and minimum are kept.

    Returns:
        A `Quantized` of one plane whose levels are the sorted points, with scale max - min and offset min.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK, range_RG, low_RG = _scaled(weight, mask, granularity, scale_dtype)
    levels = points_L.detach().float().sort().values
    index = torch.bucketize(w_RGK, (levels[1:] + levels[:-1]) / 2)
    values = set_pruned(levels[index], mask, grid, float(levels[0]))
    return Quantized((Plane(values, levels, range_RG, low_RG),), grid, weight.shape, mask)


def initial_points(weight: Tensor, mask: Tensor | None, *, count: int, granularity: Granularity, quantiles: bool) -> Tensor:
    """Initial points: quantiles of the scaled weights, for equal shares of weights, or evenly spaced.

    Returns:
        float32 (count,), sorted.
    """
    fractions = torch.linspace(0.0, 1.0, count, device=weight.device)
    if not quantiles:
        return fractions
    grid = grid_of(weight.shape, granularity)
    w_RGK, _, _ = _scaled(weight, mask, granularity, torch.float32)
    keep = group_mask(mask, grid, weight.device)
    flat = (w_RGK if keep is None else w_RGK[keep]).flatten().sort().values
    if flat.numel() == 0:
        return fractions
    # torch.quantile refuses more than 16 million elements; this interpolation has no such limit.
    position = fractions.double() * (flat.numel() - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=flat.numel() - 1)
    return torch.lerp(flat[below], flat[above], (position - below).float())


def share_points(counts: Sequence[int], gradient_norms: Sequence[float]) -> list[int]:
    """Redistribute the same total number of points: more go to tensors with larger gradients.

    Each tensor keeps half of its points, rounded down; the rest is distributed in proportion to the norm of its mean gradient
    and rounded; an excess from rounding is taken from the tensor with most points, a shortage is added to the one with fewest
    (Polino et al. 2018, section 4.2, and their code). Each tensor has 2 to 256 points.

    Args:
        counts: current points of each tensor.
        gradient_norms: one norm per tensor, not all zero.

    Returns:
        New counts, same length and, within the limits, same sum: (16, 16, 16) with norms (1, 2, 5) gives (11, 14, 23).
    """
    base = [n // 2 for n in counts]
    spare = sum(counts) - sum(base)
    whole = sum(gradient_norms)
    new = [b + round(spare * norm / whole) for b, norm in zip(base, gradient_norms, strict=True)]
    while sum(new) > sum(counts):
        new[max(range(len(new)), key=new.__getitem__)] -= 1
    while sum(new) < sum(counts):
        new[min(range(len(new)), key=new.__getitem__)] += 1
    return [min(256, max(2, n)) for n in new]


def through_points(points_L: Tensor, weight: Tensor, quantized: Quantized, effective: Tensor) -> Tensor:
    """`effective` in forward; in backward dL/dp_j = sum over weights at point j of their group's range * dL/dq.

    Polino et al. (2018), section 4.1. The latent weight receives the straight-through gradient, none where it is pruned;
    it is ignored where the recipe freezes it.
    """
    return apply_function(_ThroughPoints, points_L, weight, effective, quantized)


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


def _scaled(
    weight: Tensor, mask: Tensor | None, granularity: Granularity, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    low_RG, high_RG = group_extremes(w_RGK, group_mask(mask, grid, weight.device))
    range_RG = high_RG - low_RG
    range_RG = stored_scale(torch.where(range_RG < SMALLEST_RANGE, 1.0, range_RG), scale_dtype)
    low_RG = stored_scale(low_RG, scale_dtype)
    return (w_RGK - low_RG.unsqueeze(-1)) / usable_scale(range_RG).unsqueeze(-1), range_RG, low_RG
