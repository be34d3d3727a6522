"""The transform from latent to effective weight, the core of every compressed layer.

A `WeightTransform` owns the mask and the quantizer's state, so both are in `state_dict` and therefore in every checkpoint:
numbers under `learned`, further latent weights under `latents`, buffers under their own names. It maps a tensor to one of the
same shape, and can also be registered as a parametrization on a parameter that no compressed layer covers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitstill.errors import DataError, SpecError
from bitstill.quant.base import OptimizerStep, Quantizer, State
from bitstill.quant.granularity import PerChannel, PerGroup
from bitstill.quant.masks import even_mask, magnitude_mask
from bitstill.quant.quantized import Quantized
from bitstill.quant.rules import Prune

_SMALLEST_FLOAT16 = 2.0**-20
"""Sixteen times the smallest subnormal of float16: below it, rounding changes a scale by more than 3 %."""


class WeightTransform(nn.Module):
    """Mask and quantizer of one weight.

    Args:
        quantizer: quantizer of the weight.
        weight: the latent weight, any shape; only read, to initialize the mask and the quantizer's state.
        prune: magnitude pruning, or None.
    """

    mask: Tensor | None

    def __init__(self, quantizer: Quantizer, weight: Tensor, prune: Prune | None = None) -> None:
        super().__init__()
        self.prune = prune
        self.register_buffer("mask", None if prune is None else layer_mask(weight, prune, prune.sparsity))
        self.learned, self.latents = nn.ParameterDict(), nn.ParameterDict()
        self._buffer_names: tuple[str, ...] = ()
        with torch.no_grad():
            self.set_quantizer(quantizer, quantizer.initial_state(weight.detach(), self.mask))

    def set_quantizer(self, quantizer: Quantizer, state: Mapping[str, State]) -> None:
        """Replace the quantizer and its state.

        Raises:
            SpecError: a name in `state` is taken.
        """
        for name in self._buffer_names:
            delattr(self, name)
        self.quantizer = quantizer
        for name, tensor in state.items():
            if hasattr(self if tensor.role == "buffer" else nn.ParameterDict(), name):
                fix = "Choose another name in initial_state."
                raise SpecError("a name that is free", given=repr(name), where=f"state of {type(quantizer).__name__}", fix=fix)
        numbers, weights, buffers = (
            {name: tensor.value for name, tensor in state.items() if tensor.role == role}
            for role in ("number", "weight", "buffer")
        )
        self.learned = nn.ParameterDict({name: nn.Parameter(value) for name, value in numbers.items()})
        self.latents = nn.ParameterDict({name: nn.Parameter(value) for name, value in weights.items()})
        self._buffer_names = tuple(buffers)
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self._per_row = all(tensor.per_row for tensor in state.values())

    @property
    def state(self) -> dict[str, Tensor]:
        """The quantizer's tensors by name; not copies."""
        buffers = {name: getattr(self, name) for name in self._buffer_names}
        return {**self.learned, **self.latents, **buffers}

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """Names of the quantizer's buffers."""
        return self._buffer_names

    def quantize(self, weight: Tensor, *, training: bool = False) -> Quantized:
        """The quantized weight, without gradient, computed in float32 regardless of autocast."""
        return self._quantize(weight, self._float_state(), training)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, same shape and dtype as `weight`, with the quantizer's gradient rule."""
        passes = None if self.prune is not None and self.prune.gradient == "dense" else self.mask
        return self._effective(weight, self._float_state(), passes)

    @property
    def by_row(self) -> bool:
        """Whether each row is quantized independently, so that `rows` can be used."""
        return isinstance(self.quantizer.granularity, (PerChannel, PerGroup)) and self._per_row and self.mask is None

    def rows(self, weight: Tensor, rows: Tensor) -> Tensor:
        """The effective weight of some rows, if `by_row`.

        Args:
            weight: these rows of the latent weight, (n, ...).
            rows: their indices, int64 (n,).
        """
        return self._effective(weight, {name: tensor[rows] for name, tensor in self._float_state().items()}, None)

    def after_step(self, step: OptimizerStep) -> None:
        """Update the quantizer's state after an optimizer step."""
        with torch.no_grad():
            self.quantizer.after_step(self.state, step)

    @property
    def never_updated(self) -> bool:
        """Whether the quantizer has buffers that still have their initial values."""
        return self.quantizer.never_updated(self.state)

    def latent(self, weight: Tensor) -> Tensor:
        """Float weight represented by `weight` and further latent weights."""
        with torch.no_grad():
            return self.quantizer.latent(weight, self.state)

    def _float_state(self) -> dict[str, Tensor]:
        """The state in float32, so that a model moved to another dtype computes the same levels."""
        return {name: tensor.float() for name, tensor in self.state.items()}

    def _quantize(self, weight: Tensor, state: dict[str, Tensor], training: bool) -> Quantized:
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            return self.quantizer.quantize(weight, self.mask, state, training=training)

    def _effective(self, weight: Tensor, state: dict[str, Tensor], passes: Tensor | None) -> Tensor:
        quantized = self._quantize(weight, state, self.training)
        with torch.no_grad():
            effective = quantized.dequantize().to(weight.dtype)
        return self.quantizer.with_gradient(weight, quantized, effective, state, passes)

    def extra_repr(self) -> str:
        return self.quantizer.name


def belongs_to_quantizer(parameter: str) -> bool:
    """Whether the parameter of that name is a learned number of a quantizer (a scale, a step, a bound), not a weight."""
    owners = set(parameter.split(".")[:-1])
    return bool({"weight_transform", "input_transform", "attention_transform"} & owners) and "latents" not in owners


def layer_mask(weight: Tensor, prune: Prune, sparsity: float) -> Tensor:
    """Mask of a single weight by the rule `prune`, at the given sparsity."""
    if prune.within is None:
        return magnitude_mask(weight, sparsity)
    return even_mask(weight, sparsity, prune.within)


class FrozenWeight(nn.Module):
    """A frozen weight: passes the effective weight through and keeps its codes.

    Args:
        quantized: the quantized weight.
        quantizer: its quantizer.
    """

    def __init__(self, quantized: Quantized, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantized = quantized
        self.quantizer = quantizer

    def forward(self, weight: Tensor) -> Tensor:
        """`weight`, which freezing has already set to the effective weight."""
        return weight

    def extra_repr(self) -> str:
        return f"{self.quantizer.name}, frozen"


def check_scales(weight: Tensor, quantized: Quantized, quantizer: Quantizer, where: str) -> None:
    """Check that weights are neither too small nor too large for scales in float16.

    Args:
        weight: latent weight.
        quantized: its quantized form.
        quantizer: its quantizer.
        where: name of the layer.

    Raises:
        DataError: all scales are below the precise range of float16, one is above it, or all weights have become zero.
    """
    if quantizer.scale_dtype != "float16":
        return
    seen = weight if quantized.mask is None else weight * quantized.mask
    scales = torch.cat([plane.scale_RG.abs().flatten() for plane in quantized.planes])
    largest = float(scales.max())
    lost = largest < _SMALLEST_FLOAT16 or largest >= torch.finfo(torch.float16).max or not bool(quantized.dequantize().any())
    if lost and bool(seen.any()):
        given = f"weights up to {float(seen.abs().max()):.2g}"
        raise DataError("scales that float16 can hold", given=given, where=where, fix="Use scale_dtype='float32'.")


def check_finite(weight: Tensor, where: str) -> None:
    """Check for NaN and infinity, which valid-looking codes would hide.

    Raises:
        DataError: `weight` has an element that is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise DataError(
            "finite weights",
            given=f"{bad} of {weight.numel()} NaN or infinite",
            where=where,
            fix="Training has diverged or the file is damaged: lower the learning rate or reload the model.",
        )
