"""Binary weights: one bit each, plus a scale per group.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill.quant.granularity import Granularity, grid_of
from bitstill.quant.grouping import kept, mean, set_pruned, to_groups
from bitstill.quant.quantized import Plane, Quantized, SignPlane
from bitstill.quant.scales import stored


def binary(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    granularity: Granularity,
    scale_dtype: torch.dtype = torch.float32,
    scale_RG: Tensor | None = None,
) -> Quantized:
    """sign(w) * mean|w|, with sign(0) = +1 (Rastegari et al. 2016, XNOR-Net, eq. 6: the least-squares scale).

    sign() of most libraries gives 0 for 0, which would be a third level; here there are two, by the sign bit, so that -0.0 is
    negative.

    Args:
        weight: float tensor of any shape.
        mask: bool of the same shape, False where pruned; the mean is over what survives.
        granularity: which weights share a scale.
        scale_dtype: precision in which the scale is kept.
        scale_RG: scales to use instead of the mean.

    Returns:
        A `Quantized` of one plane with levels -1, +1 and no offset.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    # copysign and not torch.where, which takes six times as long on a CPU and shows in a training step.
    signs_RGK = set_pruned(w_RGK, mask, grid, 1.0)
    if scale_RG is None:
        scale_RG = stored(mean(w_RGK.abs(), kept(mask, grid, weight.device)), scale_dtype)
        return Quantized((SignPlane(torch.copysign(scale_RG.unsqueeze(-1), signs_RGK), scale_RG),), grid, weight.shape, mask)
    values_RGK = torch.copysign(torch.ones((), device=weight.device), signs_RGK)
    levels = torch.tensor([-1.0, 1.0], device=weight.device)
    return Quantized((Plane(values_RGK, levels, stored(scale_RG, scale_dtype)),), grid, weight.shape, mask)
