"""Input quantization as a module, the same in training and in the delivered model."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from bitstill.quant import inputs
from bitstill.quant.rules import QuantizeInput

PACT_BOUND = 2.5
"""Initial learned clipping bound (Bai et al. 2021)."""


class InputTransform(nn.Module):
    """Quantizer of a layer's input by `spec`.

    Learned bounds (`low`, `high`) and steps (`step`) are Parameters of shape (); a step is initialized from the first batch in
    training mode.
    """

    ready: Tensor | None

    def __init__(self, spec: QuantizeInput) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("ready", None)
        if spec.range == "clip":
            self.low = nn.Parameter(torch.tensor(-PACT_BOUND))
            self.high = nn.Parameter(torch.tensor(PACT_BOUND))
        elif spec.range == "step":
            self.step = nn.Parameter(torch.tensor(1.0))
            self.register_buffer("ready", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """Quantized and dequantized `x`, same shape and dtype."""
        with torch.autocast(x.device.type, enabled=False):
            return self._quantize(x)

    def _quantize(self, x: Tensor) -> Tensor:
        spec = self.spec
        match spec.range:
            case "clip":
                return inputs.learned_clip(x, self.low, self.high, bits=spec.bits, symmetric=spec.symmetric)
            case "step":
                self._start(x)
                return inputs.learned_step(x, self.step, bits=spec.bits, symmetric=spec.symmetric)
        function = inputs.dynamic_symmetric if spec.symmetric else inputs.dynamic_asymmetric
        return function(x, bits=spec.bits, per=spec.per)

    def _start(self, x: Tensor) -> None:
        if self.training and self.ready is not None and not bool(self.ready):
            with torch.no_grad():
                step = inputs.initial_step(x, bits=self.spec.bits, symmetric=self.spec.symmetric)
                if distributed.is_available() and distributed.is_initialized():
                    # Every process sees its own part of the batch, and all must start from the same step.
                    distributed.all_reduce(step)
                    step = step / distributed.get_world_size()
                self.step.copy_(step)
                self.ready.fill_(True)

    def extra_repr(self) -> str:
        return self.spec.name


def input_transform(spec: QuantizeInput | None) -> nn.Module:
    """The module for `spec`; the identity when inputs stay in float."""
    return nn.Identity() if spec is None else InputTransform(spec)
