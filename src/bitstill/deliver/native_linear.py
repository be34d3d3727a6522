"""The C library behind packed linear layers in torch: an operator that `torch.compile` sees as one, and layers that call it."""

from __future__ import annotations

import copy
import hashlib
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from bitstill.artifact.reader import Archive
from bitstill.errors import SpecError
from bitstill.model.packed_layers import PackedLinear
from bitstill.model.state import state_digest
from bitstill.model.swap import swap
from bitstill.runtime.library import library
from bitstill.runtime.linear import Linear

_LAYERS: dict[int, weakref.WeakSet[NativeLinear]] = {}
"""Layers that are loaded, by a number made of what they are: one program may run where another one was exported."""


@torch.library.custom_op("bitstill::packed_linear", mutates_args=())
def packed_linear(x: Tensor, layer: int, outputs: int) -> Tensor:
    """A layer, by its number, of x (..., inputs): (..., outputs). One operator, whatever compiles around it.

    Raises:
        SpecError: no such layer is loaded in this process.
    """
    found = next(iter(_LAYERS.get(layer, ())), None)
    if found is None:
        fix = "Load the artifact that it was exported from with kernels=True first, and keep it."
        raise SpecError("a layer that is loaded", given="none with its weights", where="bitstill::packed_linear", fix=fix)
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    if not bool(rows.isfinite().all()):  # codes cannot say NaN
        return PackedLinear.forward(found, x)
    together = rows.shape[0] // max(1, x.shape[0]) if x.ndim > 1 else 1
    product = found.native(rows.numpy(), together=max(1, together), threads=torch.get_num_threads())
    return torch.from_numpy(product).reshape(*x.shape[:-1], outputs)


@packed_linear.register_fake
def _(x: Tensor, layer: int, outputs: int) -> Tensor:
    del layer
    return x.new_empty((*x.shape[:-1], outputs))


class NativeLinear(PackedLinear):
    """A packed linear layer that runs in the C library where it can: float32 on the CPU, without gradients.

    Everywhere else it is the layer that it was made of, whose tensors it has under the same names. Answers agree with that one
    to the last bits of a float: the same integers are added, and scaled in another order. A copy runs in the library too;
    pickled, it is the layer that it was made of.
    """

    def __init__(self, reference: PackedLinear, native: Linear) -> None:
        self.__dict__ = dict(reference.__dict__)
        self.native, self.number = native, _number(reference)
        _LAYERS.setdefault(self.number, weakref.WeakSet()).add(self)

    def forward(self, input: Tensor) -> Tensor:
        """X (..., in) -> (..., out)."""
        watched = torch.is_grad_enabled() and input.requires_grad
        if watched or input.device.type != "cpu" or input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        found: Tensor = packed_linear(input, self.number, self.native.outputs)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeLinear:
        return NativeLinear(copy.deepcopy(_plain(self), memo), self.native)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (_plain(self),)

    def extra_repr(self) -> str:
        """For printing."""
        return f"inputs={self.native.inputs}, outputs={self.native.outputs}"


def _plain(layer: NativeLinear) -> PackedLinear:
    """The layer that it was made of."""
    plain = PackedLinear.__new__(PackedLinear)
    plain.__dict__ = {name: value for name, value in layer.__dict__.items() if name not in ("native", "number")}
    return plain


def _itself(layer: PackedLinear) -> PackedLinear:
    return layer


def _number(layer: PackedLinear) -> int:
    """Of all that decides what the layer computes."""
    digest = hashlib.blake2b(f"{layer!r} {state_digest(layer)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # an operator's numbers are signed


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
