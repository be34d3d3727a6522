"""Quantizers of activations, their settings and formulas: dynamic ranges, learned clipping, learned steps.

Layers receive the dequantized values, so that training computes what an integer kernel would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from bitstill.constraints import Range, check_fields
from bitstill.errors import SpecError
from bitstill.quant.gradients import apply_function, straight_through
from bitstill.quant.scales import usable_scale


@dataclass(frozen=True)
class QuantizeInput:
    """Quantization of a layer's input.

    Args:
        bits: 2 to 8; hardware supports 8 and 4.
        symmetric: signed codes; else unsigned with a zero point (per tensor at 8 bits: ONNX `DynamicQuantizeLinear`).
        per: one range per "token" (last dimension), "sample" or "tensor"; learned ranges are per tensor.
        range: "dynamic" (min and max of the input), "clip" (PACT: learned bounds) or "step" (LSQ: learned step).
    """

    bits: Annotated[int, Range(least=2, most=8)] = 8
    symmetric: bool = True
    per: Literal["token", "sample", "tensor"] = "token"
    range: Literal["dynamic", "clip", "step"] = "dynamic"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.range != "dynamic" and self.per != "tensor":
            raise SpecError(
                "per='tensor' for a learned range",
                given=f"per={self.per!r} with range={self.range!r}",
                where="QuantizeInput",
                fix="Set per='tensor', or range='dynamic'.",
            )

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{self.bits}-bit {'symmetric' if self.symmetric else 'asymmetric'} per {self.per}, {self.range}"


@dataclass(frozen=True)
class QuantizeAttention:
    """Quantization of the operands of a transformer's two attention products (Bai et al. 2021).

    Args:
        products: queries and keys before their product, and values before theirs.
        probabilities: after the softmax, before the product with the values; non-negative.
    """

    products: QuantizeInput = QuantizeInput()
    probabilities: QuantizeInput = QuantizeInput(symmetric=False)

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"queries, keys and values {self.products.name}; probabilities {self.probabilities.name}"


def shared_dims(x: Tensor, per: str) -> tuple[int, ...]:
    """Dimensions of `x` over which a range is computed: per "token" the last, per "sample" all but the first."""
    match per:
        case "token":
            return (x.ndim - 1,)
        case "sample":
            return tuple(range(1, x.ndim)) if x.ndim > 1 else (0,)
    return tuple(range(x.ndim))


def dynamic_symmetric(x: Tensor, *, bits: int, per: str) -> Tensor:
    """Q = round(x / s) with s = max|x| / (2^(bits-1) - 1) over each token, sample or the tensor; gradient straight through.

    Args:
        x: activations, any shape.
        bits: 2 to 8.
        per: "token", "sample" or "tensor".
    """
    top = 2 ** (bits - 1) - 1
    with torch.no_grad():
        dims = shared_dims(x, per)
        largest = torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))  # avoids the large tensor |x|
        scale = usable_scale(largest.float() / top)
        quantized = (x.float() / scale).round_().mul_(scale).to(x.dtype)
    return straight_through(x, quantized)


def dynamic_asymmetric(x: Tensor, *, bits: int, per: str) -> Tensor:
    """Unsigned codes with a zero point, as ONNX `DynamicQuantizeLinear` defines them (at 8 bits per tensor, exactly).

    low = min(0, min x), high = max(0, max x), s = (high - low) / (2^bits - 1), z = round(-low / s),
    q = clamp(round(x / s) + z, 0, 2^bits - 1), value = (q - z) s. Zero is always exact. The gradient is straight-through: the
    clamp only acts where rounding of the zero point exceeds the range, and does not block the gradient.
    """
    top = 2**bits - 1
    dims = shared_dims(x, per)
    with torch.no_grad():
        low = x.float().amin(dims, keepdim=True).clamp(max=0)
        high = x.float().amax(dims, keepdim=True).clamp(min=0)
        scale = usable_scale((high - low) / top)
        zero = torch.round(-low / scale).clamp(0, top)
        quantized = (x.float() / scale).round_().add_(zero).clamp_(0, top).sub_(zero).mul_(scale).to(x.dtype)
    return straight_through(x, quantized)


def learned_clip(x: Tensor, low: Tensor, high: Tensor, *, bits: int, symmetric: bool) -> Tensor:
    """Clip to learned bounds, then quantize dynamically per tensor (PACT, Choi et al. 2018, with a bound on each side).

    The gradient is zero outside the bounds, and each bound receives the sum of the gradients beyond it.

    Args:
        x: activations, any shape.
        low, high: learned bounds, shape (), low < high.
        bits: 2 to 8.
        symmetric: signed codes without a zero point, else unsigned with one.
    """
    clipped = torch.minimum(torch.maximum(x.float(), low), high)
    quantize = dynamic_symmetric if symmetric else dynamic_asymmetric
    return quantize(clipped, bits=bits, per="tensor").to(x.dtype)


def learned_step(x: Tensor, step: Tensor, *, bits: int, symmetric: bool) -> Tensor:
    """Learned step size quantization (Esser et al. 2020, LSQ, eqs. 1 to 3).

    q = clamp(round(x / step), -n, p); the step's gradient is scaled by 1 / sqrt(numel * p). Symmetric: n = 2^(bits-1),
    p = n - 1; else the smallest value of the batch is subtracted first, n = 0, p = 2^bits - 1 (for inputs that are
    non-negative or lopsided), and added again afterwards.

    Args:
        x: activations, any shape.
        step: learned, positive, shape ().
        bits: 2 to 8.
        symmetric: see above.
    """
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    step = scale_gradient(step.abs().clamp(min=1e-8), 1.0 / math.sqrt(x.numel() * high))
    shift = torch.zeros((), device=x.device) if symmetric else x.detach().float().amin()
    codes = round_ste(torch.clamp((x.float() - shift) / step, low, high))
    return (codes * step + shift).to(x.dtype)


def initial_step(x: Tensor, *, bits: int, symmetric: bool) -> Tensor:
    """Initial step of LSQ from the first batch: 2 mean|x| / sqrt(p), or 4 mean|x| / sqrt(p) when not symmetric; shape ()."""
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    return ((2.0 if symmetric else 4.0) * x.detach().float().abs().mean() / math.sqrt(top)).clamp(min=1e-8)


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest, ties to even; the gradient passes unchanged."""
    return apply_function(_Round, x)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` in forward; its gradient times `factor` in backward."""
    return apply_function(_ScaleGradient, x, factor)


class _Round(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _ScaleGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None
