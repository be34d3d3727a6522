"""Quantized operands of the attention products: a module that an attention layer carries, and its record for `config.json`.

The products are not layers with a weight, so nothing is swapped: the attention function looks for this module in the layer that
calls it (`hf.attention`), while training as in the delivered model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from bitstill.artifact.config_keys import ATTENTION
from bitstill.errors import ArtifactError, SpecError
from bitstill.model.input_transform import InputTransform
from bitstill.quant.rules import QuantizeAttention, QuantizeInput

ATTRIBUTE = "attention_transform"


class AttentionTransform(nn.Module):
    """Quantizes what enters the two products: queries and keys, then probabilities and values (Bai et al. 2021)."""

    def __init__(self, spec: QuantizeAttention) -> None:
        super().__init__()
        self.spec = spec
        self.query, self.key = InputTransform(spec.products), InputTransform(spec.products)
        self.probabilities, self.value = InputTransform(spec.probabilities), InputTransform(spec.products)

    def extra_repr(self) -> str:
        """How it is printed."""
        return self.spec.name


def add_transforms(model: nn.Module, names: Collection[str], spec: QuantizeAttention) -> None:
    """Let the attention layers `names` quantize their operands."""
    for name in names:
        layer = model.get_submodule(name)
        layer.add_module(ATTRIBUTE, AttentionTransform(spec).train(layer.training))


def remove_transforms(model: nn.Module) -> None:
    """Take them all out again."""
    for module in model.modules():
        module._modules.pop(ATTRIBUTE, None)


def attention_record(model: nn.Module) -> dict[str, Any]:
    """What `restore_transforms` needs: settings by the name of the attention layer; empty where nothing is quantized."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, AttentionTransform)}
    return {name.rpartition(".")[0]: asdict(module.spec) for name, module in found.items()}


def restore_transforms(model: nn.Module, found: Mapping[str, Any] | None) -> None:
    """Undo `attention_record` on a float model.

    Raises:
        ArtifactError: the record names no layer of the model, or has settings that mean nothing.
    """
    modules = dict(model.named_modules())
    try:
        for name, settings in (found or {}).items():
            spec = QuantizeAttention(**{key: QuantizeInput(**value) for key, value in settings.items()})
            modules[name].add_module(ATTRIBUTE, AttentionTransform(spec))
    except (KeyError, TypeError, AttributeError, SpecError) as error:
        fix = "The file is damaged or was edited; deliver the model again."
        given = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            "a record of quantized attention", given=given, where=f"config.json: {ATTENTION}", fix=fix
        ) from None
