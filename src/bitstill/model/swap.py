"""Replacing modules in place, at every name they are known by."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bitstill.errors import SpecError


def swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put each replacement where its original is, also where one module is shared by several parents (ALBERT).

    Raises:
        SpecError: if `model` itself is to be replaced, which cannot be done in place.
    """
    if model in replacements:
        raise SpecError(
            "a model that contains layers",
            given=f"a bare {type(model).__name__}",
            where="prepare",
            fix="Wrap it: nn.Sequential(layer).",
        )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
                _run_children(parent)


def _run_children(parent: nn.Module) -> None:
    """Keep torch's encoder layer from its inference fast path, which reads `linear1.weight` and never runs `linear1`.

    The latent weight would be computed with instead of the effective one, and the input never quantized.
    """
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
