"""Pruning masks by magnitude, with exact counts and deterministic ties."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitstill.errors import SpecError


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Keep the weights of largest magnitude so that round(sparsity * numel) of them are pruned, exactly.

    Ties are resolved in favour of the first element in memory.

    Args:
        weight: float tensor of any shape.
        sparsity: fraction of zeros, 0 to 1.

    Returns:
        bool of the same shape, True where kept.

    Raises:
        SpecError: if sparsity is not a fraction.
    """
    return global_masks([weight], sparsity)[0]


def global_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Like `magnitude_mask`, with one ranking over all of `weights`, of which round(sparsity * all) are pruned.

    Ties are resolved in favour of earlier tensors.

    Args:
        weights: float tensors of any shapes.
        sparsity: fraction of zeros over all of them, 0 to 1.

    Returns:
        For each, bool of its shape, True where kept.

    Raises:
        SpecError: if sparsity is not a fraction.
    """
    _check_fraction(sparsity, "magnitude_mask")
    magnitude = torch.cat([weight.detach().float().abs().flatten() for weight in weights])
    pruned = round(sparsity * magnitude.numel())
    if pruned == 0:
        return [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    # Selection instead of sorting: masks are recomputed every few steps.
    limit = magnitude.kthvalue(pruned).values
    keep = magnitude > limit
    equal = (magnitude == limit).nonzero().flatten()
    keep[equal[: magnitude.numel() - pruned - int(keep.sum())]] = True
    parts = keep.split([weight.numel() for weight in weights])
    return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def even_mask(weight: Tensor, sparsity: float, within: int) -> Tensor:
    """Prune round(sparsity * within) of every `within` consecutive weights of a row: N:M sparsity (Zhou et al. 2021).

    Ties are resolved in favour of the first element.

    Args:
        weight: float tensor, rows first; the other dimensions form a row.
        sparsity: fraction of zeros, 0 to 1.
        within: M; must divide the length of a row.

    Returns:
        bool of the same shape, True where kept.

    Raises:
        SpecError: if sparsity is not a fraction, or `within` does not divide a row.
    """
    _check_fraction(sparsity, "even_mask")
    length = weight[0].numel()
    if length % within:
        fix = "Choose a divisor of it, or ignore the layer."
        raise SpecError(f"rows that {within} divides", given=f"rows of {length} weights", where="N:M pruning", fix=fix)
    groups = weight.detach().float().abs().reshape(-1, within)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    remaining = within - round(sparsity * within)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[:, :remaining], True)
    return mask.reshape(weight.shape)


def sparsity_of(mask: Tensor) -> float:
    """Fraction of zeros of a mask."""
    return 1.0 - float(mask.float().mean())


def _check_fraction(sparsity: float, where: str) -> None:
    if not 0.0 <= sparsity <= 1.0:
        raise SpecError("a sparsity from 0 to 1", given=str(sparsity), where=where, fix="It is the fraction of zeros.")
