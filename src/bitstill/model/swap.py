"""Replacement of modules in place, under all their names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bitstill.errors import SpecError


def swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules of `model`, including modules shared by several parents (ALBERT).

    Raises:
        SpecError: `model` itself would be replaced, which is impossible in place.
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
    """Disable the inference fast path of torch's encoder layer, which reads `linear1.weight` and never runs `linear1`.

    It would use the latent weight instead of the effective one, without quantizing the input.
    """
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
