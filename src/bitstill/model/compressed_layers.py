"""Compressed layers: the original layer, computed with its effective weight.

Each is a subclass of the layer it replaces and takes over its parameters (the very same objects, under the same names), hooks,
buffers, training flag and settings, so that optimizers, tied weights, checkpoints and code that uses `layer.weight` or
`isinstance(layer, nn.Linear)` keep working. Only the forward differs.

Hugging Face's `Conv1D`, a Linear whose weight is stored (in, out), is recognised by name, so that transformers is not required;
its weight is quantized as (out, in), like every other layer's.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstill.model.input_transform import input_transform
from bitstill.model.weight_transform import FrozenWeight, WeightTransform
from bitstill.quant.rules import Compression

M = TypeVar("M", bound=nn.Module)


class CompressedLinear(nn.Linear):
    """`nn.Linear` at its effective weight: x (..., in) -> (..., out)."""

    weight_transform: nn.Module
    input_transform: nn.Module
    original_class: type[nn.Module]
    has_run: bool = False

    def effective_weight(self) -> Tensor:
        """The weight the forward uses, (out, in)."""
        result: Tensor = self.weight_transform(self.weight)
        return result

    def forward(self, input: Tensor) -> Tensor:
        self.has_run = True
        return F.linear(self.input_transform(input), self.effective_weight(), self.bias)


class CompressedConv1d(nn.Conv1d):
    """`nn.Conv1d` at its effective weight: x (N, in, L) -> (N, out, L')."""

    weight_transform: nn.Module
    input_transform: nn.Module
    original_class: type[nn.Module]
    has_run: bool = False

    def effective_weight(self) -> Tensor:
        """The weight the forward uses, (out, in / groups, kernel)."""
        result: Tensor = self.weight_transform(self.weight)
        return result

    def forward(self, input: Tensor) -> Tensor:
        self.has_run = True
        result: Tensor = self._conv_forward(self.input_transform(input), self.effective_weight(), self.bias)
        return result


class CompressedConv2d(nn.Conv2d):
    """`nn.Conv2d` at its effective weight: x (N, in, H, W) -> (N, out, H', W')."""

    weight_transform: nn.Module
    input_transform: nn.Module
    original_class: type[nn.Module]
    has_run: bool = False

    def effective_weight(self) -> Tensor:
        """The weight the forward uses, (out, in / groups, kH, kW)."""
        result: Tensor = self.weight_transform(self.weight)
        return result

    def forward(self, input: Tensor) -> Tensor:
        self.has_run = True
        result: Tensor = self._conv_forward(self.input_transform(input), self.effective_weight(), self.bias)
        return result


class CompressedEmbedding(nn.Embedding):
    """`nn.Embedding` at its effective weight: ids (...) -> (..., dim).

    If scales are per row, only the rows in use are quantized, except under `torch.compile`.
    """

    weight_transform: nn.Module
    input_transform: nn.Module
    original_class: type[nn.Module]
    has_run: bool = False

    def effective_weight(self) -> Tensor:
        """The whole table, (rows, dim)."""
        result: Tensor = self.weight_transform(self.weight)
        return result

    def forward(self, input: Tensor) -> Tensor:
        self.has_run = True
        transform = self.weight_transform
        by_row = isinstance(transform, WeightTransform) and transform.by_row
        if by_row and not torch.compiler.is_compiling():  # compilers need shapes that do not depend on the ids
            assert isinstance(transform, WeightTransform)
            unique, position = input.unique(return_inverse=True)
            rows = transform.rows(F.embedding(unique, self.weight), unique)
            return F.embedding(position, rows, self._padding_among(unique))
        return F.embedding(input, self.effective_weight(), self.padding_idx)

    def _padding_among(self, rows: Tensor) -> int | None:
        """Index in `rows` (sorted ids) of the padding row, which does not learn; None if absent."""
        if self.padding_idx is None:
            return None
        place = int((rows < self.padding_idx).sum())
        return place if place < len(rows) and int(rows[place]) == self.padding_idx else None


class CompressedTransposedLinear(nn.Module):
    """Hugging Face's `Conv1D` at its effective weight: x (..., in) -> (..., out); weight stored (in, out)."""

    weight: Tensor
    bias: Tensor
    weight_transform: nn.Module
    input_transform: nn.Module
    original_class: type[nn.Module]
    has_run: bool = False

    def effective_weight(self) -> Tensor:
        """The weight the forward uses, (out, in)."""
        result: Tensor = self.weight_transform(self.weight.T)
        return result

    def forward(self, x: Tensor) -> Tensor:
        """X times the weight, plus the bias."""
        self.has_run = True
        return F.linear(self.input_transform(x), self.effective_weight(), self.bias)


CompressedLayer = CompressedLinear | CompressedConv1d | CompressedConv2d | CompressedEmbedding | CompressedTransposedLinear
COMPRESSED_KINDS: dict[str, type[CompressedLayer]] = {
    "Linear": CompressedLinear,
    "Conv1d": CompressedConv1d,
    "Conv2d": CompressedConv2d,
    "Embedding": CompressedEmbedding,
    "TransposedLinear": CompressedTransposedLinear,
}
_ORIGINALS: dict[type[nn.Module], str] = {
    nn.Linear: "Linear",
    nn.Conv1d: "Conv1d",
    nn.Conv2d: "Conv2d",
    nn.Embedding: "Embedding",
}


def kind_of(module: nn.Module) -> str | None:
    """Kind of layer of `module`, a key of `COMPRESSED_KINDS`; None if it cannot be compressed.

    The type must match exactly: a subclass may override forward, which would silently be dropped. The weight must be a
    Parameter: one that torch computes from others before each forward (`spectral_norm`) cannot be shared.
    """
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return None
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return "TransposedLinear"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse or module.scale_grad_by_freq):
        return None
    return _ORIGINALS.get(type(module))


def change_class(original: nn.Module, kind: type[M]) -> M:
    """A module of class `kind` with all attributes of `original`, sharing its parameters and buffers."""
    new = kind.__new__(kind)
    new.__dict__ = dict(original.__dict__)
    for registry in ("_parameters", "_buffers", "_modules"):
        new.__dict__[registry] = dict(original.__dict__[registry])
    return new


def compress_layer(original: nn.Module, kind: str, compression: Compression) -> CompressedLayer:
    """The compressed layer for `original`, sharing its parameters.

    Args:
        original: a layer.
        kind: its kind, from `kind_of`.
        compression: rule for its weight and input.
    """
    layer = change_class(original, COMPRESSED_KINDS[kind])
    layer.original_class = type(original)
    weight = original.weight.T if kind == "TransposedLinear" else original.weight
    assert isinstance(weight, Tensor)
    layer.add_module("weight_transform", WeightTransform(compression.weight, weight, compression.prune))
    takes_ids = kind == "Embedding"
    layer.add_module("input_transform", nn.Identity() if takes_ids else input_transform(compression.input))
    layer.train(original.training)
    return layer


def is_compressed(module: nn.Module) -> bool:
    """Whether `module` is one of the compressed layers."""
    return isinstance(module, tuple(COMPRESSED_KINDS.values()))


def compressed_kind(layer: nn.Module) -> str:
    """The kind of a compressed layer, a key of `COMPRESSED_KINDS`."""
    return next(kind for kind, cls in COMPRESSED_KINDS.items() if type(layer) is cls)


def pruning_transform(module: nn.Module) -> WeightTransform | None:
    """The weight transform of a compressed layer that has a mask; None for every other module."""
    if not is_compressed(module):
        return None
    transform = module.weight_transform
    return transform if isinstance(transform, WeightTransform) and transform.mask is not None else None


__all__ = [
    "COMPRESSED_KINDS", "CompressedLayer", "FrozenWeight", "change_class", "compress_layer", "compressed_kind", "is_compressed",
    "kind_of", "pruning_transform",
]  # fmt: skip
