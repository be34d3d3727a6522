"""Ternary weight splitting on modules: a ternary model becomes one with two binary planes per weight, and computes the same."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from bitstill.errors import SpecError
from bitstill.model.compressed_layers import CompressedLayer, CompressedTransposedLinear, is_compressed
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.quantizer import SECOND, Binary, Clipped, SplitBinary, Ternary
from bitstill.quant.split import split_ternary


def split_model(model: nn.Module, only: Collection[str] | None = None) -> tuple[str, ...]:
    """Split every ternary weight of `model` into two binary ones, in place (Bai et al. 2021): outputs stay as they are.

    Input quantizers, biases and everything else stay too: what the published code halves or copies is here one layer with a
    weight of two planes. Weights that layers share are split once.

    Args:
        model: prepared, with `Ternary` layers.
        only: names of layers to split; the other ternary ones become binary with one plane, and what they compute changes.

    Returns:
        The names of the layers that were split.

    Raises:
        SpecError: there is no ternary layer, or one whose scale is learned, which no two binary scales add up to.
    """
    found = [(name, layer, transform) for name, (layer, transform) in ternary_layers(model).items()]
    if not found:
        fix = "Compress it to ternary first: bits='ternary'."
        raise SpecError("a model with ternary layers", given="none", where=f"splitting {type(model).__name__}", fix=fix)
    halves: dict[nn.Parameter, tuple[Ternary, nn.Parameter]] = {}
    chosen = tuple(name for name, _, _ in found if only is None or name in only)
    for name, layer, transform in found:
        spec = transform.spec
        assert isinstance(spec, Ternary) and isinstance(layer.weight, nn.Parameter)
        if spec.learned_scale:
            fix = "Train the ternary model with learned_scale=False."
            raise SpecError("scales that follow the weights", given="learned ones", where=f"splitting {name}", fix=fix)
        if name not in chosen:
            transform.spec, transform.curvature = one_plane(spec), None
            continue
        known = halves.get(layer.weight)
        if known is not None and known[0] != spec:
            given = f"{known[0].granularity} and {spec.granularity}"
            fix = "Use one rule for layers that share a weight."
            raise SpecError("one quantizer for a shared weight", given=given, where=f"splitting {name}", fix=fix)
        new, second = _split(layer, transform, spec, None if known is None else known[1])
        layer.weight_transform = new
        halves[layer.weight] = (spec, second)
    return chosen


def one_plane(spec: Ternary) -> Binary:
    """The binary quantizer of the same scales."""
    return Binary(spec.granularity, spec.gradient, spec.scale_dtype)


def ternary_layers(model: nn.Module) -> dict[str, tuple[CompressedLayer, WeightTransform]]:
    """The ternary layers of a prepared model by name, with their transforms."""
    return {name: (layer, t) for name, layer in model.named_modules() if (t := _ternary(layer)) is not None}


def _split(
    layer: CompressedLayer, transform: WeightTransform, spec: Ternary, shared: nn.Parameter | None
) -> tuple[WeightTransform, nn.Parameter]:
    """The new transform of `layer`, whose weight becomes the first half unless another layer has split it already."""
    flip = isinstance(layer, CompressedTransposedLinear)
    latent = layer.weight.detach().T if flip else layer.weight.detach()
    new = WeightTransform(SplitBinary(spec.granularity, spec.scale_dtype), latent)
    new.mask, new.prune = transform.mask, transform.prune
    if shared is None:
        if isinstance(spec.gradient, Clipped):
            latent = latent.clamp(-spec.gradient.bound, spec.gradient.bound)
        first, second = split_ternary(
            latent,
            transform.mask,
            granularity=spec.granularity,
            iterations=spec.iterations,
            curvature=transform.curvature,
        )
        with torch.no_grad():
            layer.weight.copy_(first.T if flip else first)
        shared = nn.Parameter(second)
    new.learned[SECOND] = shared
    return new.to(latent.device).train(layer.training), shared


def _ternary(layer: nn.Module) -> WeightTransform | None:
    transform = layer.weight_transform if is_compressed(layer) else None
    return transform if isinstance(transform, WeightTransform) and isinstance(transform.spec, Ternary) else None
