"""Packed layers, the delivered form: bits, scales and leftovers; no latent weights, nothing to train.

A `PackedWeight` keeps its codes packed in memory and unpacks them when the layer runs: the reference for every faster kernel.
It computes level * scale + offset on the same numbers and in the same order as training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstill.model.compressed_layers import change_class
from bitstill.quant import bitpack
from bitstill.quant.granularity import Granularity, Grid, grid_of
from bitstill.quant.grouping import from_groups, to_groups
from bitstill.quant.layouts import natural_layout
from bitstill.quant.quantized import Quantized, apply_mask, dequantize_levels


@dataclass(frozen=True)
class PackedSpec:
    """Shape and settings of a packed weight, which its tensors do not determine.

    Args:
        shape: the weight's shape, rows first.
        granularity: which weights share a scale.
        name: name of the quantizer, for reports.
        scale_dtype: "float32" or "float16", the precision in which scales and offsets are stored.
        pruned: whether to try encodings for sparse codes.
    """

    shape: tuple[int, ...]
    granularity: Granularity
    name: str
    scale_dtype: str = "float32"
    pruned: bool = False

    @property
    def grid(self) -> Grid:
        """Division of the weight into groups."""
        return grid_of(self.shape, self.granularity)


class PackedPlane(nn.Module):
    """One plane: packed codes (rows, bytes) uint8, levels (L,), scale and offset (rows, groups) float32."""

    codes: Tensor
    levels: Tensor
    scale: Tensor
    offset: Tensor | None

    def __init__(self, codes: Tensor, levels: Tensor, scale: Tensor, offset: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def groups(self, grid: Grid, rows: Tensor | None = None) -> Tensor:
        """Dequantized weights (R, G, K), of all rows or of `rows` (ids, 1-D)."""
        codes, scale, offset = self.codes, self.scale, self.offset
        if rows is not None:
            codes, scale = codes[rows], scale[rows]
            offset = None if offset is None else offset[rows]
        count = self.levels.numel()
        unpacked = bitpack.unpack(codes, grid.length, count, natural_layout(count))
        some = Grid(codes.shape[0], grid.length, grid.groups, grid.size)
        values_RGK = self.levels[to_groups(unpacked, some).int()]
        return dequantize_levels(values_RGK, scale, offset)


class PackedWeight(nn.Module):
    """A weight as bits: a sum of planes, and a packed mask unless a level represents pruned weights."""

    mask: Tensor | None

    def __init__(self, spec: PackedSpec, planes: list[PackedPlane], mask: Tensor | None) -> None:
        super().__init__()
        self.spec = spec
        self.planes = nn.ModuleList(planes)
        self.register_buffer("mask", mask)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The effective weight, float32 of the spec's shape, or only its rows `rows` (ids, 1-D)."""
        grid = self.spec.grid
        chosen = None if rows is None or grid.rows == 1 else rows
        planes = [plane.groups(grid, chosen) for plane in self.planes if isinstance(plane, PackedPlane)]
        groups = planes[0]
        for plane in planes[1:]:
            groups = groups + plane
        some = Grid(groups.shape[0], grid.length, grid.groups, grid.size)
        first = self.spec.shape[0] if chosen is None else chosen.numel()
        weight = from_groups(groups, some, torch.Size((first, *self.spec.shape[1:])))
        weight = apply_mask(weight, self._mask(chosen))
        return weight if rows is None or chosen is not None else weight[rows]

    def _mask(self, rows: Tensor | None) -> Tensor | None:
        if self.mask is None:
            return None
        packed = self.mask if rows is None else self.mask[rows]
        row = torch.Size(self.spec.shape[1:])
        return bitpack.unpack(packed, row.numel(), 2, "bits").bool().reshape(packed.shape[0], *row)

    def whole_mask(self) -> Tensor | None:
        """The mask, bool of the spec's shape; None if nothing is pruned or levels represent it."""
        return self._mask(None)

    def extra_repr(self) -> str:
        return f"{self.spec.name}, {self.spec.shape}"


class PackedLinear(nn.Module):
    """`nn.Linear` from bits: x (..., in) -> (..., out). Also used for Hugging Face's `Conv1D`."""

    kind: str
    packed: PackedWeight
    input_transform: nn.Module
    bias: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The effective weight, unpacked on each access, (out, in)."""
        result: Tensor = self.packed()
        return result

    def forward(self, input: Tensor) -> Tensor:
        """X times the effective weight, plus the bias."""
        return F.linear(self.input_transform(input), self.packed(), self.bias)


class PackedConv1d(nn.Conv1d):
    """`nn.Conv1d` from bits: x (N, in, L) -> (N, out, L')."""

    kind: str
    packed: PackedWeight
    input_transform: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(self.input_transform(input), self.packed(), self.bias)
        return result


class PackedConv2d(nn.Conv2d):
    """`nn.Conv2d` from bits: x (N, in, H, W) -> (N, out, H', W')."""

    kind: str
    packed: PackedWeight
    input_transform: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(self.input_transform(input), self.packed(), self.bias)
        return result


class PackedEmbedding(nn.Module):
    """`nn.Embedding` from bits: ids (...) -> (..., dim). Only the rows in use are unpacked."""

    kind: str
    packed: PackedWeight
    padding_idx: int | None

    @property
    def weight(self) -> Tensor:
        """The whole table, unpacked on each access, (rows, dim)."""
        result: Tensor = self.packed()
        return result

    def forward(self, input: Tensor) -> Tensor:
        """The effective rows of `input`."""
        unique, position = input.unique(return_inverse=True)
        return F.embedding(position, self.packed(unique))


PackedLayer = PackedLinear | PackedConv1d | PackedConv2d | PackedEmbedding
PACKED_KINDS: dict[str, type[PackedLayer]] = {
    "Linear": PackedLinear,
    "Conv1d": PackedConv1d,
    "Conv2d": PackedConv2d,
    "Embedding": PackedEmbedding,
    "TransposedLinear": PackedLinear,
}


def pack_weight(quantized: Quantized, spec: PackedSpec) -> PackedWeight:
    """Pack codes into bits. The mask is stored only if some plane has no level zero."""
    planes = []
    for plane, codes in zip(quantized.planes, quantized.codes(), strict=True):
        count = plane.levels.numel()
        rows = codes.reshape(quantized.grid.rows, quantized.grid.length)
        packed = bitpack.pack(rows, count, natural_layout(count))
        planes.append(PackedPlane(packed, plane.levels, plane.scale_RG, plane.offset_RG))
    mask = quantized.mask
    if mask is None or zeros_are_levels(quantized):
        return PackedWeight(spec, planes, None)
    return PackedWeight(spec, planes, bitpack.pack(mask.reshape(mask.shape[0], -1).to(torch.uint8), 2, "bits"))


def packed_layer(original: nn.Module, kind: str, packed: PackedWeight, input_transform: nn.Module) -> PackedLayer:
    """Packed layer that replaces `original`, with all its attributes but the weight.

    Args:
        original: a layer of any stage.
        kind: its kind, a key of `PACKED_KINDS`.
        packed: the weight, perhaps shared with another layer.
        input_transform: its input quantizer, or the identity.
    """
    layer = change_class(original, PACKED_KINDS[kind])
    layer.kind = kind
    for registry in (layer._parameters, layer._buffers):
        registry.pop("weight", None)
    for old in ("weight_transform", "input_transform"):
        layer._modules.pop(old, None)
    layer.__dict__.pop("original_class", None)
    layer.add_module("packed", packed)
    layer.add_module("input_transform", input_transform)
    return layer


def is_packed(module: nn.Module) -> bool:
    """Whether `module` is one of the packed layers."""
    return isinstance(module, tuple(PACKED_KINDS.values()))


def zeros_are_levels(quantized: Quantized) -> bool:
    """Whether every plane has a level zero, so that pruned weights need no mask."""
    # A pruned weight then decodes to 0 * scale = +0.
    return all(plane.offset_RG is None and bool((plane.levels == 0).any()) for plane in quantized.planes)
