"""The C library behind packed linear layers in torch: an operator that `torch.compile` sees as one, and layers that call it."""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor, nn

from bitstill.artifact.reader import Archive
from bitstill.kernels.library import library
from bitstill.kernels.linear import Linear
from bitstill.nn.packed import PackedLinear
from bitstill.surgery.swap import swap

_LAYERS: weakref.WeakValueDictionary[int, NativeLinear] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


@torch.library.custom_op("bitstill::packed_linear", mutates_args=())
def packed_linear(x: Tensor, layer: int, outputs: int) -> Tensor:
    """A layer, by its number, of x (..., inputs): (..., outputs). One operator, whatever compiles around it."""
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    together = rows.shape[0] // max(1, x.shape[0]) if x.ndim > 1 else 1
    found = _LAYERS[layer].native(rows.numpy(), together=max(1, together), threads=torch.get_num_threads())
    return torch.from_numpy(found).reshape(*x.shape[:-1], outputs)


@packed_linear.register_fake
def _(x: Tensor, layer: int, outputs: int) -> Tensor:
    del layer
    return x.new_empty((*x.shape[:-1], outputs))


class NativeLinear(nn.Module):
    """A packed linear layer that runs in the C library where it can: float32 on the CPU, without gradients.

    Everywhere else it is the layer that it stands for. Answers agree with it to the last bits of a float: the same integers are
    added, and scaled in another order.
    """

    def __init__(self, reference: PackedLinear, native: Linear) -> None:
        super().__init__()
        self.reference, self.native, self.number = reference, native, next(_NUMBERS)
        _LAYERS[self.number] = self

    @property
    def weight(self) -> Tensor:
        """The effective weight, unpacked on each access, (out, in)."""
        return self.reference.weight

    @property
    def bias(self) -> Tensor | None:
        """As it was delivered."""
        return self.reference.bias

    def forward(self, input: Tensor) -> Tensor:
        """X (..., in) -> (..., out)."""
        watched = torch.is_grad_enabled() and input.requires_grad
        if watched or input.device.type != "cpu" or input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            result: Tensor = self.reference(input)
            return result
        found: Tensor = packed_linear(input, self.number, self.native.outputs)
        return found

    def extra_repr(self) -> str:
        """For printing."""
        return f"inputs={self.native.inputs}, outputs={self.native.outputs}"


def use_kernels(model: nn.Module, archive: Archive) -> nn.Module:
    """Let the packed linear layers of `model`, loaded from `archive`, run in the C library; in place.

    Where the package was installed without a compiler nothing changes.
    """
    native = library()
    if native is None:
        return model
    found: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and name in archive.layers and archive.layers[name].kind == "Linear":
            found[module] = NativeLinear(module, Linear(archive, name, native))
    swap(model, found)
    return model.eval()
