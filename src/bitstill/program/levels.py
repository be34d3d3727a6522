"""Integer levels of weights, for targets with their own layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.format import LayerRecord, PlaneRecord
from bitstill.artifact.reader import Archive

Array = npt.NDArray[Any]


def level_range(plane: PlaneRecord) -> tuple[int, int]:
    """Lowest and highest level of a plane with integer levels."""
    assert plane.first is not None
    return plane.first, plane.first + plane.step * (plane.levels - 1)


def signed_bits(plane: PlaneRecord, among: tuple[int, ...]) -> int | None:
    """Smallest of these numbers of bits that represents a plane's levels as signed integers; None if none does."""
    low, high = level_range(plane)
    return next((bits for bits in among if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)), None)


def whole_levels(archive: Archive, layer: LayerRecord, plane: int = 0) -> Array:
    """Levels of one plane, int16 (rows, weights in a row): the layer's rows, or a single one under one scale or flat buckets.

    Masked weights are 0: only for planes that have no offset.
    """
    record = layer.planes[plane]
    assert record.first is not None
    levels = record.step * archive.codes(layer, plane).astype(np.int16) + np.int16(record.first)
    mask = kept_weights(archive, layer)
    return levels if mask is None else np.where(mask, levels, np.int16(0))


def kept_weights(archive: Archive, layer: LayerRecord) -> Array | None:
    """Mask of a layer, True where weights are kept, in the rows of `whole_levels`; None without a mask."""
    if not layer.mask:
        return None
    row = layer.weights // layer.shape[0]
    mask = np.unpackbits(archive.tensors[layer.tensor("mask")], axis=-1, bitorder="little")[:, :row]
    return mask.reshape(layer.grid.rows, -1).astype(bool)


def packed_bits(codes: Array, bits: int) -> Array:
    """Codes (rows, length) as a bit stream per row, lowest bits first: uint8 (rows, ceil(length * bits / 8))."""
    stream = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, bitorder="little", count=bits)
    return np.packbits(stream.reshape(len(codes), -1), axis=-1, bitorder="little")
