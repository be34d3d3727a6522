"""Uniform quantization: evenly spaced levels, from the minimum to the maximum of each group or symmetric about zero.

Legend: R rows, G groups per row, K weights per group. All arithmetic is float32, whatever autocast says.
Adding 0.0 turns the -0.0 that rounding can leave into +0.0, which is what the stored code will decode to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitstill.quant.granularity import Granularity, grid_of
from bitstill.quant.grouping import extremes, kept, mean, set_pruned, to_groups
from bitstill.quant.quantized import Plane, Quantized
from bitstill.quant.scales import stored, usable

SMALLEST_STEP = 1e-8
"""A learned step stays above it."""
SMALLEST_RANGE = 1e-10
"""A group whose range is smaller counts as constant (the guard of Polino et al.'s code)."""


def uniform_affine(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    bits: int,
    granularity: Granularity,
    stochastic: bool = False,
    scale_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Min-max quantization to 2^bits levels: q = round((w - min) / step), step = (max - min) / (2^bits - 1).

    Polino, Pascanu, Alistarh (2018), section 3.1: linear scaling; stochastic rounding is its eq. for Q with E[q] = w.
    A constant group has step 1 and all codes 0, so its minimum reproduces it exactly.

    Args:
        weight: float tensor of any shape.
        mask: bool of the same shape, False where pruned; pruned weights take no part in min and max.
        bits: 1 to 8.
        granularity: which weights share a scale and an offset.
        stochastic: round up with probability equal to the remainder, instead of to nearest (ties to even).
        scale_dtype: precision in which scale and offset are kept.

    Returns:
        A `Quantized` of one plane with levels 0 .. 2^bits - 1, a scale (the step) and an offset (the minimum).
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    low_RG, high_RG = extremes(w_RGK, kept(mask, grid, weight.device))
    top = 2**bits - 1
    range_RG = high_RG - low_RG
    step_RG = torch.where(range_RG < SMALLEST_RANGE, 1.0, range_RG / top)
    step_RG, low_RG = stored(step_RG, scale_dtype), stored(low_RG, scale_dtype)
    position = (w_RGK - low_RG.unsqueeze(-1)) / usable(step_RG).unsqueeze(-1)
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
) -> Quantized:
    """Quantization to the 2^bits - 1 levels -n..n with n = 2^(bits-1) - 1: q = round(w / step), step = max|w| / n.

    The narrow-range convention (Zhang et al. 2020, TernaryBERT): zero is a level and +max is not clipped, so a pruned
    weight needs no place in a mask on disk. At 2 bits the three levels are -max, 0, max.

    Args, returns: as `uniform_affine`, with bits from 2 to 8, signed levels and no offset.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    low_RG, high_RG = extremes(w_RGK, kept(mask, grid, weight.device))
    n = 2 ** (bits - 1) - 1
    step_RG = stored(torch.maximum(high_RG.abs(), low_RG.abs()) / n, scale_dtype)
    values = _round(w_RGK / usable(step_RG).unsqueeze(-1), stochastic).clamp_(-n, n).add_(0.0)
    levels = torch.arange(-n, n + 1, dtype=torch.float32, device=weight.device)
    return Quantized((Plane(set_pruned(values, mask, grid, 0.0), levels, step_RG),), grid, weight.shape, mask)


def uniform_step(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    bits: int,
    step_RG: Tensor,
    granularity: Granularity,
    dead_zone: bool = True,
    scale_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Quantization by a given step: q = clamp(round(w / step), -2^(bits-1), 2^(bits-1) - 1) (Esser et al. 2020, LSQ, eq. 1).

    All 2^bits levels are used, zero among them.

    Args:
        weight, mask, granularity, scale_dtype: as `uniform_affine`.
        bits: 2 to 8.
        step_RG: float32 (R, G), positive.
        dead_zone: weights within half a step of zero become zero; else the level of their sign that is nearest to it.

    Returns:
        A `Quantized` of one plane with levels -2^(bits-1) .. 2^(bits-1) - 1 and no offset.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    step_RG = stored(step_RG, scale_dtype)
    low, high = step_levels(bits)
    values = (w_RGK / usable(step_RG).unsqueeze(-1)).round_().clamp_(low, high).add_(0.0)
    if not dead_zone:
        values = torch.where(values == 0, torch.copysign(torch.ones_like(values), w_RGK), values)
    levels = torch.arange(low, high + 1, dtype=torch.float32, device=weight.device)
    return Quantized((Plane(set_pruned(values, mask, grid, 0.0), levels, step_RG),), grid, weight.shape, mask)


def step_levels(bits: int) -> tuple[int, int]:
    """The smallest and the largest level of `uniform_step`."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def initial_steps(weight: Tensor, mask: Tensor | None, *, bits: int, granularity: Granularity) -> Tensor:
    """LSQ's start, 2 mean|w| / sqrt(2^(bits-1) - 1) of each group (Esser et al. 2020, section 2.1): (R, G), positive."""
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.detach().float(), grid)
    largest = step_levels(bits)[1]
    return (2.0 * mean(w_RGK.abs(), kept(mask, grid, weight.device)) / math.sqrt(largest)).clamp(min=SMALLEST_STEP)


def _round(x: Tensor, stochastic: bool) -> Tensor:
    if not stochastic:
        return torch.round(x)
    below = torch.floor(x)
    return below + (torch.rand_like(x) < x - below)
