"""Quantized operands of a transformer's attention products: detection of the attention layers, and a module for each.

The products are not layers with a weight, so no layer is swapped: the attention function (`hf.attention_scores`) looks for an
`AttentionTransform` in the layer that calls it, both in training and in the delivered model.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from bitstill.artifact.config_keys import ATTENTION
from bitstill.errors import ArtifactError, MatchError, SpecError
from bitstill.model.blocks import blocks
from bitstill.model.input_transform import InputTransform
from bitstill.model.modes import evaluating
from bitstill.model.select import RunOnce
from bitstill.quant.inputs import QuantizeAttention, QuantizeInput

ATTRIBUTE = "attention_transform"
"""Name under which a layer carries its transform."""
SCORES = "_bitstill_scores"
"""Attribute of an attention layer with the receiver of its scores."""
HEADS = "_bitstill_heads"
"""The same for its queries, keys and values."""


class AttentionTransform(nn.Module):
    """Quantizes what enters the two products: queries and keys, then probabilities and values (Bai et al. 2021)."""

    def __init__(self, spec: QuantizeAttention) -> None:
        super().__init__()
        self.spec = spec
        self.query, self.key = InputTransform(spec.products), InputTransform(spec.products)
        self.probabilities, self.value = InputTransform(spec.probabilities), InputTransform(spec.products)

    def extra_repr(self) -> str:
        """Settings, for `repr`."""
        return self.spec.name


def add_transforms(model: nn.Module, names: Collection[str], spec: QuantizeAttention) -> None:
    """Add a transform to each of the attention layers `names`."""
    for name in names:
        layer = model.get_submodule(name)
        layer.add_module(ATTRIBUTE, AttentionTransform(spec).train(layer.training))


def remove_transforms(model: nn.Module) -> None:
    """Remove every transform of `model`."""
    for module in model.modules():
        module._modules.pop(ATTRIBUTE, None)


def attention_record(model: nn.Module) -> dict[str, Any]:
    """Record for `restore_transforms`: settings by the name of the attention layer; empty if nothing is quantized."""
    transforms = {name: module for name, module in model.named_modules() if isinstance(module, AttentionTransform)}
    return {name.rpartition(".")[0]: asdict(transform.spec) for name, transform in transforms.items()}


def restore_transforms(model: nn.Module, record: Mapping[str, Any] | None) -> None:
    """Add the transforms of an `attention_record` to a float model.

    Raises:
        ArtifactError: the record names no layer of the model, or has invalid settings.
    """
    modules = dict(model.named_modules())
    try:
        for name, settings in (record or {}).items():
            spec = QuantizeAttention(**{key: QuantizeInput(**value) for key, value in settings.items()})
            modules[name].add_module(ATTRIBUTE, AttentionTransform(spec))
    except (KeyError, TypeError, AttributeError, SpecError) as error:
        fix = "The file is damaged or was edited; deliver the model again."
        given = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            "a record of quantized attention", given=given, where=f"config.json: {ATTENTION}", fix=fix
        ) from None


def quantize_attention(model: nn.Module, spec: QuantizeAttention, run_once: RunOnce) -> tuple[str, ...]:
    """Quantize the operands of both products in every attention layer of `model`, in place.

    Args:
        model: a transformer whose attention is computed by `hf.attention_scores`.
        spec: settings of the quantization.
        run_once: runs the model on a small batch, to detect the layers and to verify that they quantize.

    Returns:
        Names of the layers.

    Raises:
        MatchError: a block computes its attention otherwise, and would silently stay in float.
    """
    depth, names = len(blocks(model)), _attention_layers(model, run_once)
    add_transforms(model, names, spec)
    used: set[str] = set()
    transforms = {name: module for name, module in model.named_modules() if isinstance(module, AttentionTransform)}
    handles = [t.probabilities.register_forward_hook(functools.partial(_note, used, name)) for name, t in transforms.items()]
    _run(model, run_once)
    for handle in handles:
        handle.remove()
    if len(used) != depth:
        remove_transforms(model)
        fix = "It needs a model loaded by bitstill whose attention transformers dispatches (DeBERTa's is not)."
        given = f"{len(used)} of {depth} blocks do"
        raise MatchError("attention whose operands can be quantized", given=given, where=type(model).__name__, fix=fix)
    return names


def _note(used: set[str], name: str, *_arguments: object) -> None:
    used.add(name)


def _attention_layers(model: nn.Module, run_once: RunOnce) -> tuple[str, ...]:
    """Names of the modules whose attention function provides scores."""
    layers: dict[str, None] = {}
    inside = {id(part) for block in blocks(model).modules for part in block.modules()}
    asked = {name: module for name, module in model.named_modules() if id(module) in inside}
    for name, module in asked.items():
        module.__dict__[SCORES] = functools.partial(_add, layers, name)
    try:
        _run(model, run_once)
    finally:
        for module in asked.values():
            module.__dict__.pop(SCORES, None)
    return tuple(layers)


def _add(layers: dict[str, None], name: str, _scores: object) -> None:
    layers[name] = None


def _run(model: nn.Module, run_once: RunOnce) -> None:
    with evaluating(model):
        run_once(model)
