"""Weights in the block types of ggml, llama.cpp's tensor library: rows cut into blocks with a 16-bit scale each.

A type is used only if it represents the trained levels exactly. Its scales are 16-bit floats, to which ours are rounded, which
is exact if they were trained in float16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.format import LayerRecord
from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError
from bitstill.program.levels import whole_levels

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BlockType:
    """One of ggml's types.

    Args:
        name: its name in ggml.
        size: weights in a block.
        levels: lowest and highest level, in units of the block's scale.
        step: distance of levels; 2 has no zero.
        offset: whether a block has an offset; codes are then counted from 0.
        pack: function from codes counted from the lowest level, uint8 (blocks, size), to bytes (blocks, bytes) without scale
            and offset.
        scale_last: whether the scale follows the codes.
    """

    name: str
    size: int
    levels: tuple[int, int]
    step: int
    offset: bool
    pack: Callable[[Array], Array]
    scale_last: bool = False

    def says(self, levels: Array, *, offset: bool) -> bool:
        """Whether it has all these levels."""
        low, high = self.levels
        inside = bool(levels.size) and levels.min() >= low and levels.max() <= high
        return offset == self.offset and inside and not np.any((levels - low) % self.step)


def _bits(codes: Array) -> Array:
    return np.packbits(codes, axis=-1, bitorder="little")


def _pairs(codes: Array) -> Array:
    """Four codes in a byte: those 32 apart."""
    parts = codes.reshape(len(codes), -1, 4, 32) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    packed: Array = np.bitwise_or.reduce(parts, axis=2)
    return packed.reshape(len(codes), -1)


def _nibbles(codes: Array) -> Array:
    """Two codes in a byte: those 16 apart."""
    packed: Array = codes[:, :16] | codes[:, 16:] << 4
    return packed


def _bytes(codes: Array) -> Array:
    """Signed bytes."""
    return (codes.astype(np.int16) - 128).astype(np.int8).view(np.uint8)


TYPES = (
    BlockType("Q1_0", 128, (-1, 1), 2, False, _bits),
    BlockType("TQ2_0", 256, (-1, 1), 1, False, _pairs, scale_last=True),
    BlockType("Q4_0", 32, (-8, 7), 1, False, _nibbles),
    BlockType("Q4_1", 32, (0, 15), 1, True, _nibbles),
    BlockType("Q8_0", 32, (-128, 127), 1, False, _bytes),
)
"""Block types, smallest first."""


def block_type(layer: LayerRecord) -> BlockType:
    """Smallest type that represents a layer's levels.

    Raises:
        ArtifactError: there is none; names the layer and a fix.
    """
    if len(layer.planes) > 1:
        raise _unfit("weights of one plane", f"{len(layer.planes)} planes", layer, "Train it without splitting.")
    plane = layer.planes[0]
    if plane.first is None:
        raise _unfit("evenly spaced levels", "learned points", layer, "Train it with Uniform, Ternary or Binary.")
    levels = plane.step * np.arange(plane.levels) + (0 if plane.offset else plane.first)
    if layer.mask:
        if plane.offset:
            raise _unfit("zeros that are a level", "a mask over levels with an offset", layer, "Train it symmetric.")
        levels = np.append(levels, 0)
    row = layer.weights // layer.shape[0]
    candidates = [kind for kind in TYPES if kind.says(levels, offset=plane.offset)]
    if not candidates:
        fix = "Train it symmetric, or with at most 4 bits."
        raise _unfit("levels that a block of ggml can say", f"{plane.levels} levels with an offset", layer, fix)
    for kind in candidates:
        if row % kind.size == 0 and (layer.grid.groups == 1 or layer.grid.size % kind.size == 0) and _by_row(layer):
            return kind
    if not _by_row(layer):
        raise _unfit("scales that stay in a row", "flat buckets", layer, "Train it with PerChannel or PerGroup.")
    smallest = candidates[-1].size
    given = f"rows of {row}" if row % smallest else f"groups of {layer.grid.size}"
    raise _unfit(f"rows and groups of whole blocks of {smallest}", given, layer, "Leave the layer in float (ignore).")


def packed_blocks(archive: Archive, layer: LayerRecord) -> tuple[BlockType, Array]:
    """A layer's weights in ggml's form: the type, and uint8 (rows, bytes per row).

    Raises:
        ArtifactError: as for `block_type`, or scales exceed float16.
    """
    kind, plane, rows = block_type(layer), layer.planes[0], layer.shape[0]
    assert plane.first is not None
    levels = whole_levels(archive, layer) - (plane.first if plane.offset else 0)
    blocks = ((levels - kind.levels[0]) // kind.step).astype(np.uint8).reshape(-1, kind.size)
    scale = archive.tensors[layer.tensor("scale")].astype(np.float32)
    numbers = [_spread(scale, layer, kind)]
    if plane.offset:
        offset = archive.tensors[layer.tensor("offset")].astype(np.float32) + scale * plane.first
        numbers.append(_spread(offset, layer, kind))
    parts = [*numbers, kind.pack(blocks)]
    whole = np.concatenate(parts[::-1] if kind.scale_last else parts, axis=-1)
    return kind, np.ascontiguousarray(whole.reshape(rows, -1))


def _spread(numbers: Array, layer: LayerRecord, kind: BlockType) -> Array:
    """One 16-bit float per block, as bytes (blocks, 2), from one per group."""
    rows = layer.shape[0]
    per_row = layer.weights // rows // kind.size
    by_group = np.broadcast_to(numbers, (rows, numbers.shape[1]))
    covered = per_row if layer.grid.groups == 1 else layer.grid.size // kind.size
    by_block = np.repeat(by_group, covered, axis=1)[:, :per_row].astype(np.float16)  # the last group may be cut short
    if not np.isfinite(by_block).all():
        raise _unfit("scales up to 65504", f"{np.abs(numbers).max():.4g}", layer, "Leave the layer in float (ignore).")
    return np.ascontiguousarray(by_block.reshape(-1, 1)).view(np.uint8)


def _by_row(layer: LayerRecord) -> bool:
    """Whether no group of a scale crosses rows."""
    return layer.grid.rows == layer.shape[0] or layer.grid.groups == 1


def _unfit(wanted: str, given: str, layer: LayerRecord, fix: str) -> ArtifactError:
    return ArtifactError(f"{wanted} for gguf", given=given, where=layer.name, fix=fix)
