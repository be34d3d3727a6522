"""From latent weight to effective weight: the nucleus of every compressed layer.

A `WeightTransform` owns the mask and the quantizer's learned tensors, so both are in `state_dict` and therefore in every
checkpoint. It is tensor in, tensor of the same shape out; an expert can register it as a parametrization on an odd
parameter that no layer here covers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitstill.errors import DataError
from bitstill.quant.granularity import PerChannel, PerGroup
from bitstill.quant.masks import even_mask, magnitude_mask
from bitstill.quant.quantized import Quantized
from bitstill.quant.quantizer import CURVATURE, SECOND, Ternary
from bitstill.quant.rules import Prune, Quantizer


class WeightTransform(nn.Module):
    """Mask and quantizer of one weight.

    Args:
        spec: the weight quantizer.
        weight: the latent weight, any shape; only read, to place the mask and the learned tensors.
        prune: magnitude pruning, or None.
    """

    mask: Tensor | None
    curvature: Tensor | None

    def __init__(self, spec: Quantizer, weight: Tensor, prune: Prune | None = None) -> None:
        super().__init__()
        self.spec, self.prune = spec, prune
        self.register_buffer("mask", None if prune is None else layer_mask(weight, prune, prune.sparsity))
        loss_aware = isinstance(spec, Ternary) and spec.loss_aware
        self.register_buffer(CURVATURE, torch.ones_like(weight, requires_grad=False) if loss_aware else None)
        initial = spec.initial(weight.detach(), self.mask)
        self.learned = nn.ParameterDict({name: nn.Parameter(value) for name, value in initial.items()})

    def quantize(self, weight: Tensor, *, training: bool = False) -> Quantized:
        """The quantized weight, without gradient. Computed in float32 whatever autocast says."""
        return self._quantize(weight, self._known(), training)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, same shape and dtype as `weight`, with the spec's gradient rule."""
        passes = None if self.prune is not None and self.prune.gradient == "dense" else self.mask
        return self._effective(weight, self._known(), passes)

    @property
    def by_row(self) -> bool:
        """Whether each row is quantized on its own, so that `rows` can leave the others out."""
        own = isinstance(self.spec.granularity, (PerChannel, PerGroup)) and "points" not in self.learned
        return own and self.mask is None

    def rows(self, weight: Tensor, rows: Tensor) -> Tensor:
        """The effective weight of some rows alone, where `by_row`.

        Args:
            weight: these rows of the latent weight, (n, ...).
            rows: which they are, int64 (n,).
        """
        return self._effective(weight, {name: tensor[rows] for name, tensor in self._known().items()}, None)

    def _known(self) -> dict[str, Tensor]:
        """What the spec's formula needs besides weight and mask."""
        learned = dict(self.learned.items())
        return learned if self.curvature is None else {**learned, CURVATURE: self.curvature}

    def _quantize(self, weight: Tensor, learned: dict[str, Tensor], training: bool) -> Quantized:
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            return self.spec.quantize(weight, self.mask, learned, training=training)

    def _effective(self, weight: Tensor, learned: dict[str, Tensor], passes: Tensor | None) -> Tensor:
        quantized = self._quantize(weight, learned, self.training)
        with torch.no_grad():
            effective = quantized.dequantize().to(weight.dtype)
        return self.spec.differentiable(weight, quantized, effective, learned, passes)

    def sort_points(self) -> None:
        """Put learned points back in ascending order; call it after an optimizer step."""
        if "points" in self.learned:
            with torch.no_grad():
                self.learned["points"].copy_(self.learned["points"].sort().values)

    def set_points(self, points_L: Tensor) -> None:
        """Replace the learned points, also by another number of them."""
        self.learned["points"] = nn.Parameter(points_L)

    def extra_repr(self) -> str:
        return self.spec.name


def belongs_to_quantizer(parameter: str) -> bool:
    """Whether the parameter of that name is a number of a quantizer (a scale, a step, a bound), and not a weight."""
    *owners, leaf = parameter.split(".")
    return bool({"weight_transform", "input_transform", "attention_transform"} & set(owners)) and leaf != SECOND


def layer_mask(weight: Tensor, prune: Prune, sparsity: float) -> Tensor:
    """The mask that `prune` places on one weight on its own, at another sparsity than its own perhaps."""
    if prune.within is None:
        return magnitude_mask(weight, sparsity)
    return even_mask(weight, sparsity, prune.within)


class FrozenWeight(nn.Module):
    """A weight that has been quantized for good: passes the effective weight through and keeps its codes.

    Args:
        quantized: what the latent weight became.
        spec: the quantizer that made it.
    """

    def __init__(self, quantized: Quantized, spec: Quantizer) -> None:
        super().__init__()
        self.quantized = quantized
        self.spec = spec

    def forward(self, weight: Tensor) -> Tensor:
        """`weight`, which freezing has already set to the effective weight."""
        return weight

    def extra_repr(self) -> str:
        return f"{self.spec.name}, frozen"


def check_finite(weight: Tensor, where: str) -> None:
    """Refuse NaN and infinity before they become codes that look like any other.

    Raises:
        DataError: if `weight` has an element that is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise DataError(
            "finite weights",
            given=f"{bad} of {weight.numel()} NaN or infinite",
            where=where,
            fix="Training has diverged or the file is damaged: lower the learning rate or reload the model.",
        )
