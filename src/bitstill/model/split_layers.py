"""Ternary weight splitting on modules: a ternary model becomes an equivalent one with two binary planes per weight."""

from __future__ import annotations

import torch
from torch import nn

from bitstill.errors import SpecError
from bitstill.model.compressed_layers import CompressedLayer, CompressedTransposedLinear, is_compressed
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.base import Quantizer, Splittable, SplitWeight


def split_model(model: nn.Module) -> tuple[str, ...]:
    """Split every ternary weight of `model` into two binary ones, in place, without changing outputs (Bai et al. 2021).

    Input quantizers, biases and everything else stay unchanged: where the published code halves or copies them, this is one
    layer with a weight of two planes. Shared weights are split once.

    Args:
        model: prepared, with layers whose quantizers are `Splittable`.

    Returns:
        Names of the split layers.

    Raises:
        SpecError: there is no such layer, or its scale is learned, so that no two binary scales add up to it.
    """
    layers = splittable_layers(model)
    if not layers:
        fix = "Compress it to ternary first: bits='ternary'."
        raise SpecError("a model with ternary layers", given="none", where=f"splitting {type(model).__name__}", fix=fix)
    done: dict[nn.Parameter, tuple[Quantizer, SplitWeight, WeightTransform]] = {}
    for name, (layer, transform) in layers.items():
        quantizer = transform.quantizer
        assert isinstance(quantizer, Splittable) and isinstance(layer.weight, nn.Parameter)
        if layer.weight not in done:
            done[layer.weight] = (quantizer, _split(name, layer, transform, quantizer), transform)
            continue
        first_quantizer, split, first = done[layer.weight]
        if first_quantizer != quantizer:
            given = f"{first_quantizer.granularity} and {quantizer.granularity}"
            fix = "Use one rule for layers that share a weight."
            raise SpecError("one quantizer for a shared weight", given=given, where=f"splitting {name}", fix=fix)
        transform.set_quantizer(split.quantizer, split.state)
        for latent, parameter in first.latents.items():
            transform.latents[latent] = parameter
    return tuple(layers)


def splittable_layers(model: nn.Module) -> dict[str, tuple[CompressedLayer, WeightTransform]]:
    """The layers of a prepared model whose quantizers are `Splittable` by name, with their transforms."""
    layers = {}
    for name, layer in model.named_modules():
        transform = layer.weight_transform if is_compressed(layer) else None
        if isinstance(transform, WeightTransform) and isinstance(transform.quantizer, Splittable):
            layers[name] = (layer, transform)
    return layers


def _split(name: str, layer: CompressedLayer, transform: WeightTransform, quantizer: Splittable) -> SplitWeight:
    """Split one layer: its weight becomes the first half, the second is in its transform's new state."""
    flip = isinstance(layer, CompressedTransposedLinear)
    latent = layer.weight.detach().T if flip else layer.weight.detach()
    split = quantizer.split(latent, transform.mask, transform.state, name)
    with torch.no_grad():
        layer.weight.copy_(split.weight.T if flip else split.weight)
    transform.set_quantizer(split.quantizer, split.state)
    return split
