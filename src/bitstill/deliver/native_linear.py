"""Packed linear layers in torch that run in the C library: a custom operator, opaque to `torch.compile`, and its layers."""

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
"""Loaded layers by a hash of their contents, so that an exported program runs in another process."""


@torch.library.custom_op("bitstill::packed_linear", mutates_args=())
def packed_linear(x: Tensor, layer: int, outputs: int) -> Tensor:
    """Apply a loaded layer, given by its number, to x (..., inputs): (..., outputs).

    Raises:
        SpecError: no such layer is loaded in this process.
    """
    loaded = next(iter(_LAYERS.get(layer, ())), None)
    if loaded is None:
        fix = "Load the original artifact with kernels=True first, and keep a reference to it."
        raise SpecError("a loaded layer", given="none with these weights", where="bitstill::packed_linear", fix=fix)
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    if not bool(rows.isfinite().all()):  # codes cannot represent NaN
        return PackedLinear.forward(loaded, x)
    together = rows.shape[0] // max(1, x.shape[0]) if x.ndim > 1 else 1
    product = loaded.native(rows.numpy(), together=max(1, together), threads=torch.get_num_threads())
    return torch.from_numpy(product).reshape(*x.shape[:-1], outputs)


@packed_linear.register_fake
def _(x: Tensor, layer: int, outputs: int) -> Tensor:
    del layer
    return x.new_empty((*x.shape[:-1], outputs))


class NativeLinear(PackedLinear):
    """A packed linear layer that runs in the C library where possible: float32 on the CPU, without gradients.

    Otherwise it behaves as the original layer, whose tensors it holds under the same names. Outputs agree with those up to the
    last bits of a float: the same integers are added, but scaled in another order. A copy also runs in the library; pickling
    restores the original layer.
    """

    def __init__(self, reference: PackedLinear, native: Linear) -> None:
        self.__dict__ = dict(reference.__dict__)
        self.native, self.number = native, _number(reference)
        _LAYERS.setdefault(self.number, weakref.WeakSet()).add(self)

    def forward(self, input: Tensor) -> Tensor:
        """Compute x (..., inputs) -> (..., outputs)."""
        needs_gradient = torch.is_grad_enabled() and input.requires_grad
        if needs_gradient or input.device.type != "cpu" or input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        product: Tensor = packed_linear(input, self.number, self.native.outputs)
        return product

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeLinear:
        return NativeLinear(copy.deepcopy(_plain(self), memo), self.native)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (_plain(self),)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"inputs={self.native.inputs}, outputs={self.native.outputs}"


def _plain(layer: NativeLinear) -> PackedLinear:
    """The original layer."""
    plain = PackedLinear.__new__(PackedLinear)
    plain.__dict__ = {name: value for name, value in layer.__dict__.items() if name not in ("native", "number")}
    return plain


def _itself(layer: PackedLinear) -> PackedLinear:
    return layer


def _number(layer: PackedLinear) -> int:
    """Hash of everything that determines the layer's outputs."""
    digest = hashlib.blake2b(f"{layer!r} {state_digest(layer)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # integers of operators are signed


def use_kernels(model: nn.Module, archive: Archive) -> nn.Module:
    """Make the packed linear layers of `model`, loaded from `archive`, run in the C library; in place.

    Has no effect if the package was installed without a compiler.
    """
    native = library()
    if native is None:
        return model
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and name in archive.layers and archive.layers[name].kind == "Linear":
            replacements[module] = NativeLinear(module, Linear(archive, name, native))
    swap(model, replacements)
    return model.eval()
