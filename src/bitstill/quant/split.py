"""Ternary weight splitting: two binary weights whose sum is a given ternary one, exactly (Bai et al. 2021, section 3.2).

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill.quant.granularity import Granularity, grid_of
from bitstill.quant.grouping import from_groups, kept, to_groups
from bitstill.quant.ternary import ternary

ROOM = 0.99
"""Of a mean magnitude that a scale allows: the signs of the two halves of a zero differ by what is left."""
SMALLEST = torch.finfo(torch.float32).tiny


def split_ternary(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    granularity: Granularity,
    iterations: int = 0,
    curvature: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Two latent weights with w1 + w2 = w and binary(w1) + binary(w2) = ternary(w).

    Where the ternary weight is not zero, w1 = a w and w2 = (1 - a) w. Where it is zero, one of the two receives w + s b and
    the other -s b, with s = sign(w), so that their signs differ. a and b follow from mean|w1| = mean|w2| = alpha / 2, with
    alpha the ternary scale, n the weights of the group, z its zeros and S sums of magnitudes:

        b = (n alpha - S) / (2 z)            a = 1/2 + (S_second - S_first) / (2 S_nonzero)

    S_first and S_second are the magnitudes of the zeros that the first and the second receive. The paper deals them by sign;
    a then leaves (0, 1) where zeros of one sign weigh more than all that is not zero, and signs would flip. Here they are
    dealt in turn, by magnitude, so that a is as near 1/2 as can be, and always inside. Computed in float64.

    b is above 0 as long as alpha exceeds the mean magnitude S / n, which a loss-aware scale need not: magnitudes of the halves
    add up to S at least, and to S where nothing is zero. In such a group w is first multiplied by a number, so that S / n is a
    little below alpha, or equals it; the quantized sum is then still exact, and the latent one is w times that number.

    Args:
        weight: latent, of any shape.
        mask: bool of the same shape, False where pruned; the magnitudes of pruned weights count nowhere.
        granularity, iterations, curvature: those of the ternary quantizer.

    Returns:
        The two latent weights, of the shape and dtype of `weight`.
    """
    quantized = ternary(weight, mask, granularity=granularity, iterations=iterations, curvature=curvature)
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.double(), grid)
    counts = kept(mask, grid, weight.device)
    counts = torch.ones_like(w_RGK) if counts is None else counts.double()
    large = quantized.planes[0].values_RGK.abs().double()
    zeros = counts - large

    n_RG, z_RG = counts.sum(-1), zeros.sum(-1)
    alpha_RG = (w_RGK.abs() * large).sum(-1) / large.sum(-1).clamp(min=1)
    if curvature is not None:
        alpha_RG = quantized.planes[0].scale_RG.double()
        room = alpha_RG * n_RG / (w_RGK.abs() * counts).sum(-1).clamp(min=SMALLEST)
        w_RGK = w_RGK * torch.where(z_RG == 0, room, torch.where(room < 1, ROOM * room, 1.0)).unsqueeze(-1)
    magnitude = w_RGK.abs()
    large_sum = (magnitude * large).sum(-1)
    b_RG = (n_RG * alpha_RG - (magnitude * counts).sum(-1)) / (2 * z_RG.clamp(min=1))
    to_first = _dealt(magnitude, zeros)
    difference = (magnitude * (zeros - 2 * to_first)).sum(-1)  # what the second receives, minus what the first does
    a_RG = 0.5 + difference / (2 * large_sum).where(large_sum > 0, 1.0)

    sign = torch.where(w_RGK < 0, -1.0, 1.0)
    spread = sign * b_RG.clamp(min=0).unsqueeze(-1)  # negative by rounding only: alpha exceeds the mean magnitude
    receives = torch.where(to_first > 0, w_RGK + spread, -spread)
    a = a_RG.unsqueeze(-1)
    first = torch.where(large > 0, a * w_RGK, torch.where(zeros > 0, receives, w_RGK / 2))
    second = w_RGK - first
    return tuple(from_groups(half, grid, weight.shape).to(weight.dtype) for half in (first, second))  # type: ignore[return-value]


def _dealt(magnitude: Tensor, zeros: Tensor) -> Tensor:
    """1.0 for the zeros that the first weight receives: every other one by magnitude, float64 (R, G, K)."""
    order = torch.where(zeros > 0, magnitude, torch.inf).argsort(dim=-1, stable=True)
    turn = torch.zeros_like(magnitude)
    turn[..., ::2] = 1.0
    return torch.zeros_like(magnitude).scatter(-1, order, turn) * zeros
