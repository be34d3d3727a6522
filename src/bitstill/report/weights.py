"""Latent and effective weights of the largest layers, for histograms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from bitstill.model.compressed_layers import CompressedTransposedLinear, is_compressed
from bitstill.model.weight_transform import WeightTransform

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerWeights:
    """All weights of one layer, flat and in the same order."""

    name: str
    quantizer: str
    latent: Values
    effective: Values


def largest_layers(model: nn.Module, most: int) -> tuple[LayerWeights, ...]:
    """Largest layers of `model` with latent weights, largest first."""
    compressed = [(name, module) for name, module in model.named_modules() if is_compressed(module)]
    latent = [(name, module) for name, module in compressed if isinstance(module.weight_transform, WeightTransform)]
    latent.sort(key=lambda item: -_weight(item[1]).numel())
    return tuple(_read(name, module) for name, module in latent[:most])


def _read(name: str, module: nn.Module) -> LayerWeights:
    transform, weight = module.weight_transform, _weight(module).detach()
    assert isinstance(transform, WeightTransform)
    if isinstance(module, CompressedTransposedLinear):
        weight = weight.T
    # Not module.effective_weight(): in training mode that may round stochastically, unlike the delivered form.
    return LayerWeights(name, transform.quantizer.name, _flat(weight), _flat(transform.quantize(weight).dequantize()))


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _flat(tensor: Tensor) -> Values:
    values: Values = tensor.detach().float().cpu().flatten().numpy()
    return values
