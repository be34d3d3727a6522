"""Gradient rules shared by several quantizers: forward returns Q(w) itself, backward substitutes a gradient.

The forward of each function returns its quantized input unchanged. The common form `w + (Q(w) - w).detach()` is not used: it
rounds twice and differs from Q(w) in the last bit, so that the trained weights would differ from the delivered ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from bitstill.quant.grouping import to_groups
from bitstill.quant.quantized import Quantized


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, effective: Tensor, passes: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if passes is None else (passes,)))
        ctx.dtype = weight.dtype
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        for passes in ctx.saved_tensors:
            grad = grad * passes
        return grad.to(ctx.dtype), None, None


class _ThroughScale(Function):
    @staticmethod
    def forward(
        ctx: Any, scale_RG: Tensor, weight: Tensor, effective: Tensor, passes: Tensor | None, quantized: Quantized
    ) -> Tensor:
        ctx.save_for_backward(quantized.planes[0].values_RGK, *(() if passes is None else (passes,)))
        ctx.grid, ctx.mask, ctx.dtype = quantized.grid, quantized.mask, weight.dtype
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values_RGK, *passes = ctx.saved_tensors
        counted = grads[0].float() if ctx.mask is None else grads[0].float() * ctx.mask
        through = grads[0] * passes[0] if passes else grads[0]
        return (to_groups(counted, ctx.grid) * values_RGK).sum(-1), through.to(ctx.dtype), None, None, None


def apply_function(function: type[Function], *arguments: object) -> Tensor:
    """Apply `function`, with a return type for type checkers."""
    apply: Callable[..., Tensor] = function.apply
    return apply(*arguments)


def straight_through(weight: Tensor, effective: Tensor, passes: Tensor | None = None) -> Tensor:
    """`effective` in forward; in backward its gradient goes to `weight` unchanged (Bengio et al. 2013), times `passes`.

    Args:
        weight: the latent weight.
        effective: Q(weight), same shape, no gradient.
        passes: bool of the same shape, False where no gradient may pass; None passes all.
    """
    return apply_function(_StraightThrough, weight, effective, passes)


def through_scale(
    scale_RG: Tensor, weight: Tensor, quantized: Quantized, effective: Tensor, passes: Tensor | None = None
) -> Tensor:
    """`effective` in forward; in backward dL/dscale = sum over the group of level * dL/dq, and straight through to `weight`.

    Args:
        scale_RG: the learned scales; the gradient passes through their rounding for storage.
        weight, effective, passes: as `straight_through`.
        quantized: one plane without an offset, made with these scales.
    """
    return apply_function(_ThroughScale, scale_RG, weight, effective, passes, quantized)
