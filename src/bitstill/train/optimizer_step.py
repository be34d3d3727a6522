"""Updates of quantizer state after an optimizer step: learned points are sorted, second moments are copied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitstill.model.compressed_layers import CompressedLayer, CompressedTransposedLinear, is_compressed
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.base import OptimizerStep


def after_optimizer_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Update the state of every quantizer in `model`. Call it after each optimizer step, before gradients are zeroed.

    Args:
        model: trained model.
        optimizer: optimizer of its parameters.

    Raises:
        SpecError: a quantizer needs another optimizer.
    """
    owners = {layer.weight_transform: layer for layer in model.modules() if is_compressed(layer)}
    for name, module in model.named_modules():
        if isinstance(module, WeightTransform):
            layer = name.removesuffix(".weight_transform")
            module.after_step(_step(owners.get(module), optimizer, layer))  # type: ignore[arg-type]


def quantizer_buffers(model: nn.Module) -> list[str]:
    """Names of quantizer state that is not trained: equal in all processes, and large."""
    transforms = {name: module for name, module in model.named_modules() if isinstance(module, WeightTransform)}
    return [f"{name}.{buffer}" for name, transform in transforms.items() for buffer in transform.buffer_names]


def _step(layer: CompressedLayer | None, optimizer: torch.optim.Optimizer, name: str) -> OptimizerStep:
    """The optimizer's state for the weight of `layer`, in the shape in which it is quantized; empty without a layer."""
    kind = type(optimizer).__name__
    if layer is None:
        return OptimizerStep(name, kind, None, None)
    moment: Tensor | None = optimizer.state.get(layer.weight, {}).get("exp_avg_sq")
    gradient = layer.weight.grad
    if isinstance(layer, CompressedTransposedLinear):
        gradient, moment = (None if tensor is None else tensor.T for tensor in (gradient, moment))
    return OptimizerStep(name, kind, gradient, moment)
