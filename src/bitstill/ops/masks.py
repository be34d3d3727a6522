"""Which weights are kept: exact counts, deterministic ties."""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill.errors import SpecError


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Keep the weights of largest magnitude so that round(sparsity * numel) of them are pruned, exactly.

    Among equal magnitudes the one that comes first in memory is kept.

    Args:
        weight: float tensor of any shape.
        sparsity: fraction of zeros, 0 to 1.

    Returns:
        bool of the same shape, True where kept.

    Raises:
        SpecError: if sparsity is not a fraction.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise SpecError(
            "a sparsity from 0 to 1", given=str(sparsity), where="magnitude_mask", fix="It is the fraction of zeros."
        )
    pruned = round(sparsity * weight.numel())
    order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order[weight.numel() - pruned :]] = False
    return mask.reshape(weight.shape)


def sparsity_of(mask: Tensor) -> float:
    """Fraction of zeros of a mask."""
    return 1.0 - float(mask.float().mean())
