"""What quantizers do when the optimizer has made a step: learned points are put in order, curvatures follow the gradients.

follow = bitstill.Following(model, optimizer)
optimizer.step()
follow()
"""

from __future__ import annotations

import torch
from torch import nn

from bitstill.errors import SpecError
from bitstill.model.compressed_layers import CompressedTransposedLinear, is_compressed
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.quantizer import CURVATURE

LEAST = 1e-8
"""Of a curvature, so that a row whose gradients have all been zero has means; as in Adam's denominator."""


class Following:
    """Call it after each step of `optimizer`, before gradients are set to zero.

    Args:
        model: what is trained.
        optimizer: of its parameters.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        transforms = [module for module in model.modules() if isinstance(module, WeightTransform)]
        self._points = [transform for transform in transforms if "points" in transform.learned]
        self._curved = [
            (name, module)
            for name, module in model.named_modules()
            if is_compressed(module) and getattr(module.weight_transform, "curvature", None) is not None
        ]

    @property
    def buffers(self) -> list[str]:
        """Names of the curvatures in the model."""
        return [f"{name}.weight_transform.{CURVATURE}" for name, _ in self._curved]

    def __call__(self) -> None:
        """Sort points; set each curvature to the root of Adam's second moment.

        Raises:
            SpecError: a loss-aware quantizer under an optimizer that has no such moment.
        """
        for transform in self._points:
            transform.sort_points()
        for name, layer in self._curved:
            if layer.weight.grad is None:
                continue
            moment = self.optimizer.state.get(layer.weight, {}).get("exp_avg_sq")
            if moment is None:
                fix = "Train with AdamW, or with loss_aware=False."
                given = type(self.optimizer).__name__
                raise SpecError("an Adam optimizer for loss-aware ternarization", given=given, where=name, fix=fix)
            curvature = moment.T if isinstance(layer, CompressedTransposedLinear) else moment
            torch.sqrt(curvature, out=layer.weight_transform.curvature).add_(LEAST)
