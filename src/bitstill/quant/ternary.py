"""Ternary weights: -1, 0 or +1 times a scale per group.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill.quant.granularity import Granularity, grid_of
from bitstill.quant.grouping import kept, mean, to_groups
from bitstill.quant.quantized import Plane, Quantized
from bitstill.quant.scales import stored, usable

THRESHOLD = 0.7
"""Delta = 0.7 mean|w|: the approximate optimum for normal and uniform weights (Li, Zhang, Liu 2016, eq. 6)."""


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

    Li, Zhang, Liu (2016), eqs. 5 and 6. A group of zeros has no weight above the threshold: its scale is 0.

    Args:
        weight, mask, granularity, scale_dtype, scale_RG: those of `binary`.
        iterations: steps of alternating least squares that follow, each choosing the weights above half the scale (the nearest
            level) and then their mean.
        curvature: of the loss, not negative, of the shape of `weight`; means weigh each weight by it. With it the iterations
            are loss-aware ternarization (Hou and Kwok 2018); None is a curvature of 1 everywhere.

    Returns:
        As `binary`, with levels -1, 0, +1.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    keep = kept(mask, grid, weight.device)
    magnitude = w_RGK.abs()
    threshold_RG = THRESHOLD * mean(magnitude, keep)
    large = _above(magnitude, threshold_RG, keep)
    curvature_RGK = None if curvature is None else to_groups(curvature.float(), grid)
    for _ in range(iterations):
        large = _above(magnitude, _mean_of(magnitude, large, curvature_RGK) / 2, keep)
    if scale_RG is None:
        scale_RG = _mean_of(magnitude, large, curvature_RGK)
    values = torch.copysign(large, w_RGK).add_(0.0)  # no -0.0, which a stored code could not bring back
    levels = torch.tensor([-1.0, 0.0, 1.0], device=weight.device)
    return Quantized((Plane(values, levels, stored(scale_RG, scale_dtype)),), grid, weight.shape, mask)


def _above(magnitude: Tensor, threshold_RG: Tensor, keep: Tensor | None) -> Tensor:
    """1.0 where a magnitude that counts is above its group's threshold, else 0.0: (R, G, K)."""
    # In floats: comparing and choosing are several times slower than arithmetic on a CPU, and show in a training step.
    large = (magnitude - threshold_RG.unsqueeze(-1)).sign_().clamp_(min=0.0)
    return large if keep is None else large * keep


def _mean_of(magnitude: Tensor, large: Tensor, curvature: Tensor | None) -> Tensor:
    """Mean of the magnitudes where `large` is 1, weighed by `curvature`; 0 for a group without any: (R, G)."""
    counts = large if curvature is None else large * curvature
    return (magnitude * counts).sum(-1) / usable(counts.sum(-1))
