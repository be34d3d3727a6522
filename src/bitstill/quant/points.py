"""Learned quantization points: levels placed anywhere in [0, 1] of each group's range, shared by the whole tensor.

Differentiable quantization (Polino, Pascanu, Alistarh 2018, section 4) trains the points and leaves the weights alone.
The number of points need not be a power of two.

Legend: R rows, G groups per row, K weights per group, L points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitstill.quant.granularity import Granularity, grid_of
from bitstill.quant.grouping import extremes, kept, set_pruned, to_groups
from bitstill.quant.quantized import Plane, Quantized
from bitstill.quant.scales import stored, usable
from bitstill.quant.uniform import SMALLEST_RANGE


def nearest_points(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    points_L: Tensor,
    granularity: Granularity,
    scale_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Each weight, scaled to [0, 1] by its group's range, goes to the nearest point (a tie goes to the lower one).

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
    """Where the points start: at quantiles of the scaled weights (each point serves as many), or evenly spaced.

    Returns:
        float32 (count,), sorted.
    """
    fractions = torch.linspace(0.0, 1.0, count, device=weight.device)
    if not quantiles:
        return fractions
    grid = grid_of(weight.shape, granularity)
    w_RGK, _, _ = _scaled(weight, mask, granularity, torch.float32)
    keep = kept(mask, grid, weight.device)
    flat = (w_RGK if keep is None else w_RGK[keep]).flatten().sort().values
    if flat.numel() == 0:
        return fractions
    # torch.quantile refuses more than 16 million elements; interpolating by hand has no such limit.
    position = fractions.double() * (flat.numel() - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=flat.numel() - 1)
    return torch.lerp(flat[below], flat[above], (position - below).float())


def share_points(counts: Sequence[int], gradient_norms: Sequence[float]) -> list[int]:
    """Share the same total number of points out again, more to the tensors whose gradient is larger.

    Each tensor keeps half of its points, rounded down; the rest is dealt in proportion to the norm of its mean gradient
    and rounded; what rounding leaves over is taken from the tensor with most points, what is missing goes to the one with
    fewest (Polino et al. 2018, section 4.2, and their code). 2 points per tensor and 256 are the limits.

    Args:
        counts: points of each tensor now.
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


def _scaled(
    weight: Tensor, mask: Tensor | None, granularity: Granularity, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    low_RG, high_RG = extremes(w_RGK, kept(mask, grid, weight.device))
    range_RG = high_RG - low_RG
    range_RG = stored(torch.where(range_RG < SMALLEST_RANGE, 1.0, range_RG), scale_dtype)
    low_RG = stored(low_RG, scale_dtype)
    return (w_RGK - low_RG.unsqueeze(-1)) / usable(range_RG).unsqueeze(-1), range_RG, low_RG
