"""Sums of two binary weights: their quantizer, and the exact split of a ternary weight.

Ternary weight splitting: Bai et al. (2021), section 3.2. Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bitstill.constraints import check_fields
from bitstill.quant.base import Quantizer, ScaleDtype, State
from bitstill.quant.binary import binary
from bitstill.quant.gradients import apply_function
from bitstill.quant.granularity import Granularity, PerChannel
from bitstill.quant.grouping import from_groups, group_mask, to_groups
from bitstill.quant.quantized import Quantized

SECOND = "second"
"""Name of the second latent weight in the state of `SplitBinary`."""
ROOM = 0.99
"""Fraction of a scale that the mean magnitude may reach; the rest separates the signs of the two halves of a zero."""
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class SplitBinary(Quantizer):
    """Sum of two binary planes, each with its own latent weight: 2 bits per weight.

    Usually split from ternary weights without changing them (Bai et al. 2021, ternary weight splitting: `Ternary.split`). On
    other weights the second plane starts as the residual of the first.

    Args: as for `Binary`.
    """

    granularity: Granularity = field(default_factory=PerChannel)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """Name in reports."""
        return "split binary"

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """The second latent weight, in the shape of the first."""
        return {SECOND: State(weight.float() - self._plane(weight, mask).dequantize(), "weight")}

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize `weight` and the second latent weight, each to its two levels."""
        first, second = self._plane(weight, mask), self._plane(state[SECOND], mask)
        return Quantized((*first.planes, *second.planes), first.grid, first.shape, mask)

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to both latent weights."""
        return to_both(weight, state[SECOND], effective, passes)

    def latent(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Sum of both latent weights."""
        return weight + state[SECOND]

    def _plane(self, weight: Tensor, mask: Tensor | None) -> Quantized:
        return binary(weight, mask, granularity=self.granularity, scale_dtype=self.torch_scale_dtype)


def split_ternary(weight: Tensor, quantized: Quantized, *, loss_aware: bool = False) -> tuple[Tensor, Tensor]:
    """Two latent weights with w1 + w2 = w and binary(w1) + binary(w2) = ternary(w).

    Where the ternary weight is not zero, w1 = a w and w2 = (1 - a) w. Where it is zero, one of the two receives w + s b and
    the other -s b, with s = sign(w), so that their signs differ. a and b follow from mean|w1| = mean|w2| = alpha / 2, with
    alpha the ternary scale, n the weights of the group, z its zeros and S sums of magnitudes:

        b = (n alpha - S) / (2 z)            a = 1/2 + (S_second - S_first) / (2 S_nonzero)

    S_first and S_second are sums of magnitudes of the zeros assigned to the first and the second weight. The paper assigns them
    by sign; a then leaves (0, 1) where zeros of one sign outweigh all non-zeros, and signs would flip. Here they are assigned
    alternately, by magnitude, so that a is as close to 1/2 as possible, and always inside. Computed in float64.

    b is positive if alpha exceeds the mean magnitude S / n, which a loss-aware scale may not: the magnitudes of the halves add
    up to at least S, and to S where nothing is zero. In such a group w is first scaled, so that S / n is slightly below alpha,
    or equal to it; the quantized sum stays exact, and the latent sum is the scaled w.

    Args:
        weight: latent, of any shape.
        quantized: its ternary form, scales in float32; pruned weights are excluded from all sums.
        loss_aware: whether its scales are weighed by a curvature, so that they may be below the mean magnitude.

    Returns:
        The two latent weights, of the shape and dtype of `weight`.
    """
    grid = quantized.grid
    w_RGK = to_groups(weight.double(), grid)
    counts = group_mask(quantized.mask, grid, weight.device)
    counts = torch.ones_like(w_RGK) if counts is None else counts.double()
    large = quantized.planes[0].values_RGK.abs().double()
    zeros = counts - large

    n_RG, z_RG = counts.sum(-1), zeros.sum(-1)
    alpha_RG = (w_RGK.abs() * large).sum(-1) / large.sum(-1).clamp(min=1)
    if loss_aware:
        alpha_RG = quantized.planes[0].scale_RG.double()
        room = alpha_RG * n_RG / (w_RGK.abs() * counts).sum(-1).clamp(min=SMALLEST)
        w_RGK = w_RGK * torch.where(z_RG == 0, room, torch.where(room < 1, ROOM * room, 1.0)).unsqueeze(-1)
    magnitude = w_RGK.abs()
    large_sum = (magnitude * large).sum(-1)
    b_RG = (n_RG * alpha_RG - (magnitude * counts).sum(-1)) / (2 * z_RG.clamp(min=1))
    to_first = _dealt(magnitude, zeros)
    difference = (magnitude * (zeros - 2 * to_first)).sum(-1)  # magnitudes assigned to the second minus the first
    a_RG = 0.5 + difference / (2 * large_sum).where(large_sum > 0, 1.0)

    sign = torch.where(w_RGK < 0, -1.0, 1.0)
    spread = sign * b_RG.clamp(min=0).unsqueeze(-1)  # negative by rounding only: alpha exceeds the mean magnitude
    receives = torch.where(to_first > 0, w_RGK + spread, -spread)
    a = a_RG.unsqueeze(-1)
    first = torch.where(large > 0, a * w_RGK, torch.where(zeros > 0, receives, w_RGK / 2))
    second = w_RGK - first
    return tuple(from_groups(half, grid, weight.shape).to(weight.dtype) for half in (first, second))  # type: ignore[return-value]


def to_both(first: Tensor, second: Tensor, effective: Tensor, passes: Tensor | None = None) -> Tensor:
    """Like `straight_through`, for a sum of two quantized weights: each latent weight receives the gradient of the sum.

    Args:
        first, second: the latent weights, of one shape.
        effective: Q(first) + Q(second), same shape, no gradient.
        passes: as `straight_through`.
    """
    return apply_function(_ToBoth, first, second, effective, passes)


class _ToBoth(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, effective: Tensor, passes: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if passes is None else (passes,)))
        ctx.dtypes = first.dtype, second.dtype
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        for passes in ctx.saved_tensors:
            grad = grad * passes
        return grad.to(ctx.dtypes[0]), grad.to(ctx.dtypes[1]), None, None


def _dealt(magnitude: Tensor, zeros: Tensor) -> Tensor:
    """1.0 for the zeros assigned to the first weight, every other one by magnitude, float64 (R, G, K)."""
    order = torch.where(zeros > 0, magnitude, torch.inf).argsort(dim=-1, stable=True)
    turn = torch.zeros_like(magnitude)
    turn[..., ::2] = 1.0
    return torch.zeros_like(magnitude).scatter(-1, order, turn) * zeros
