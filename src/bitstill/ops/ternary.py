"""Ternary weights: -1, 0 or +1 times a scale per group.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill.granularity import Granularity, grid_of
from bitstill.ops.grouping import kept, mean, to_groups
from bitstill.ops.quantized import Plane, Quantized
from bitstill.ops.scales import stored

THRESHOLD = 0.7
"""Delta = 0.7 mean|w|: the approximate optimum for normal and uniform weights (Li, Zhang, Liu 2016, eq. 6)."""


def ternary(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    granularity: Granularity,
    scale_dtype: torch.dtype = torch.float32,
    scale_RG: Tensor | None = None,
) -> Quantized:
    """Ternary weight network: alpha sign(w) where |w| > 0.7 mean|w|, else 0; alpha = mean|w| over the former.

    Li, Zhang, Liu (2016), eqs. 5 and 6. A group of zeros has no weight above the threshold: its scale is 0.

    Args, returns: as `binary`, with levels -1, 0, +1.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    keep = kept(mask, grid, weight.device)
    magnitude = w_RGK.abs()
    threshold_RG = THRESHOLD * mean(magnitude, keep)
    # In floats: comparing and choosing are several times slower than arithmetic on a CPU, and show in a training step.
    large = (magnitude - threshold_RG.unsqueeze(-1)).sign_().clamp_(min=0.0)
    if keep is not None:
        large = large * keep
    if scale_RG is None:
        scale_RG = (magnitude * large).sum(-1) / large.sum(-1).clamp(min=1)
    values = torch.copysign(large, w_RGK).add_(0.0)  # no -0.0, which a stored code could not bring back
    levels = torch.tensor([-1.0, 0.0, 1.0], device=weight.device)
    return Quantized((Plane(values, levels, stored(scale_RG, scale_dtype)),), grid, weight.shape, mask)
