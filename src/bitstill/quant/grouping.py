"""Weights in groups that share a scale, and statistics of each group.

Legend: R rows, G groups per row, K weights per group. Grouped tensors are (R, G, K); statistics are (R, G).
Padding and pruned weights are excluded from statistics: `keep` (R, G, K) is False there, or None when nothing is excluded,
the common case.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bitstill.quant.granularity import Grid


def to_groups(x: Tensor, grid: Grid) -> Tensor:
    """Cut `x` (any shape with rows * length elements) into (R, G, K), padding each row's end with zeros.

    The result is contiguous, because the order of summation, and so the last bit of a sum, follows the strides: a transposed
    weight would otherwise get other scales than an equal contiguous one.
    """
    x = x.reshape(grid.rows, grid.length).contiguous()
    if grid.padding:
        x = F.pad(x, (0, grid.padding))
    return x.reshape(grid.rows, grid.groups, grid.size)


def from_groups(x: Tensor, grid: Grid, shape: torch.Size) -> Tensor:
    """Inverse of `to_groups`: (R, G, K) -> `shape`, without padding."""
    return x.reshape(grid.rows, -1)[:, : grid.length].reshape(shape)


def group_mask(mask: Tensor | None, grid: Grid, device: torch.device) -> Tensor | None:
    """Elements of the groups included in statistics, (R, G, K) bool; None for all.

    Args:
        mask: bool, the weight's shape, False where pruned; or None.
    """
    if mask is None and not grid.padding:
        return None
    if mask is None:
        mask = torch.ones(grid.rows, grid.length, dtype=torch.bool, device=device)
    return to_groups(mask, grid)


def _count(x_RGK: Tensor, keep: Tensor | None) -> Tensor:
    """Number of included elements of each group, at least 1 to allow division: (R, G) float32."""
    if keep is None:
        return torch.full(x_RGK.shape[:2], float(x_RGK.shape[2]), device=x_RGK.device)
    return keep.sum(-1).clamp(min=1).float()


def _total(x_RGK: Tensor, keep: Tensor | None) -> Tensor:
    """Sum of each group over the included elements: (R, G)."""
    return (x_RGK if keep is None else torch.where(keep, x_RGK, 0.0)).sum(-1)


def group_mean(x_RGK: Tensor, keep: Tensor | None) -> Tensor:
    """Mean of each group over the included elements, 0 for a group without any: (R, G)."""
    return _total(x_RGK, keep) / _count(x_RGK, keep)


def group_extremes(x_RGK: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Min and max of each group over the included elements, (0, 0) for a group without any: two (R, G)."""
    if keep is None:
        return x_RGK.amin(-1), x_RGK.amax(-1)  # torch.aminmax is several times slower on a CPU
    low = torch.where(keep, x_RGK, math.inf).amin(-1)
    high = torch.where(keep, x_RGK, -math.inf).amax(-1)
    some = keep.any(-1)
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)


def set_pruned(values_RGK: Tensor, mask: Tensor | None, grid: Grid, level: float) -> Tensor:
    """`values_RGK` with `level` where `mask` prunes, so that all pruned weights have the same code."""
    return values_RGK if mask is None else torch.where(to_groups(mask, grid), values_RGK, level)
