"""A packed layer's weights as ONNX nodes: constants are the bytes of the artifact, and standard operators unpack them.

Nodes that do not depend on the network's input are folded into constants when a runtime loads the file. Rows gathered from a
table do depend on it, so only these are unpacked, at each call.
"""

from __future__ import annotations

import numpy as np

from bitstill.artifact.format import LayerRecord
from bitstill.artifact.reader import Archive, Array
from bitstill.exporters.onnx.graph import MIDDLE, Graph
from bitstill.program.levels import level_range
from bitstill.quant.layouts import TRITS_PER_BYTE, Layout, bits_for, natural_layout


def integer_planes(layer: LayerRecord) -> bool:
    """Whether the weights are 8-bit integers times one scale per row, so that integers can be multiplied."""
    by_row = layer.grid.groups == 1 and layer.grid.rows in (1, layer.shape[0])
    whole = all(
        plane.first is not None and level_range(plane)[0] >= -128 and level_range(plane)[1] <= 255 for plane in layer.planes
    )
    shifted = any(plane.offset for plane in layer.planes)
    return by_row and whole and not (layer.mask and shifted)


def level_zero(layer: LayerRecord, plane: int) -> int | None:
    """Zero point of one plane's levels stored as uint8; None if stored as int8."""
    low, high = level_range(layer.planes[plane])
    if layer.mask:
        low, high = min(low, 0), max(high, 0)
    if high > 127:
        return 0
    return MIDDLE if max(-low, high) > 64 else None


def integer_weight(graph: Graph, archive: Archive, layer: LayerRecord, plane: int) -> str:
    """One plane's levels in the layer's shape, moved by `level_zero`: uint8, or int8 where that is None.

    Processors without a dot product of bytes add pairs of products of unsigned by signed bytes in 16 bits, which overflows for
    levels beyond 64; such levels are therefore stored unsigned around a zero point.
    """
    levels = _levels(graph, archive, layer, plane, "int32")
    if layer.mask:
        levels = graph.node("Where", _mask(graph, archive, layer), levels, graph.constant(0, np.int32))
    zero = level_zero(layer, plane)
    moved = levels if not zero else graph.node("Add", levels, graph.constant(zero, np.int32))
    return graph.cast(moved, "int8" if zero is None else "uint8")


def row_numbers(archive: Archive, layer: LayerRecord, kind: str, plane: int) -> Array:
    """Scales or offsets of one plane, one per row (rows,)."""
    return np.broadcast_to(archive.tensors[layer.tensor(kind, plane)].reshape(-1), layer.shape[:1])


def float_weight(graph: Graph, archive: Archive, layer: LayerRecord) -> str:
    """The effective weight, float32, in the layer's shape: the sum of levels times scales plus offsets, as everywhere."""
    grid, total = layer.grid, ""
    for index, plane in enumerate(layer.planes):
        values = _levels(graph, archive, layer, index, "float32", shape=(grid.rows, grid.length))
        if grid.padding:
            values = graph.node("Pad", values, graph.constant([0, 0, 0, grid.padding]))
        values = graph.node("Reshape", values, graph.constant([grid.rows, grid.groups, grid.size]))
        for kind, operator in (("scale", "Mul"), ("offset", "Add")):
            if kind == "scale" or plane.offset:
                numbers = archive.tensors[layer.tensor(kind, index)][..., None]
                values = graph.node(operator, values, graph.cast(graph.constant(numbers), "float32"))
        total = values if not total else graph.node("Add", total, values)
    if grid.padding:
        total = graph.node("Reshape", total, graph.constant([grid.rows, grid.groups * grid.size]))
        total = graph.node("Slice", total, graph.constant([0]), graph.constant([grid.length]), graph.constant([1]))
    weight = graph.node("Reshape", total, graph.constant(list(layer.shape)))
    if layer.mask:
        weight = graph.node("Where", _mask(graph, archive, layer), weight, graph.constant(0.0))
    return weight


def rows_stand_alone(layer: LayerRecord) -> bool:
    """Whether single rows of a table can be unpacked."""
    return layer.grid.rows == layer.shape[0] and not layer.mask


def gathered_rows(graph: Graph, archive: Archive, layer: LayerRecord, ids: str) -> str:
    """Rows of a table, float32 (tokens, width): packed rows are gathered, and only they are unpacked.

    Args:
        ids: int64 (tokens,).
    """
    grid, total = layer.grid, ""
    for index, plane in enumerate(layer.planes):
        packed, layout = _packed(archive, layer, index)
        rows = graph.node("Gather", graph.constant(packed), ids)
        values = _as_levels(graph, archive, layer, index, _unpacked(graph, rows, grid.length, plane.levels, layout), "float32")
        if grid.groups > 1:
            padded = values if not grid.padding else graph.node("Pad", values, graph.constant([0, 0, 0, grid.padding]))
            values = graph.node("Reshape", padded, graph.constant([0, grid.groups, grid.size]))
        for kind, operator in (("scale", "Mul"), ("offset", "Add")):
            if kind == "scale" or plane.offset:
                table = archive.tensors[layer.tensor(kind, index)]
                numbers = table[..., None] if grid.groups > 1 else table
                by_row = graph.cast(graph.node("Gather", graph.constant(numbers), ids), "float32")
                values = graph.node(operator, values, by_row)
        total = values if not total else graph.node("Add", total, values)
    if grid.groups > 1:
        total = graph.node("Reshape", total, graph.constant([0, grid.groups * grid.size]))
        if grid.padding:
            total = graph.node("Slice", total, graph.constant([0]), graph.constant([grid.length]), graph.constant([1]))
    return total


def _levels(
    graph: Graph, archive: Archive, layer: LayerRecord, plane: int, dtype: str, shape: tuple[int, ...] | None = None
) -> str:
    packed, layout = _packed(archive, layer, plane)
    codes = _unpacked(graph, graph.constant(packed), layer.grid.length, layer.planes[plane].levels, layout)
    values = _as_levels(graph, archive, layer, plane, codes, dtype)
    return graph.node("Reshape", values, graph.constant(list(shape or layer.shape)))


def _as_levels(graph: Graph, archive: Archive, layer: LayerRecord, plane: int, codes: str, dtype: str) -> str:
    record = layer.planes[plane]
    if record.first is None:
        return graph.node("Gather", graph.constant(archive.levels(layer, plane)), graph.cast(codes, "int32"))
    values, kind = graph.cast(codes, dtype), np.dtype(dtype)
    if record.step != 1:
        values = graph.node("Mul", values, graph.constant(np.array(record.step, kind)))
    if record.first:
        values = graph.node("Add", values, graph.constant(np.array(record.first, kind)))
    return values


def _packed(archive: Archive, layer: LayerRecord, plane: int) -> tuple[Array, Layout]:
    """Packed codes in a layout that standard operators can unpack, without entropy coding."""
    record = layer.planes[plane]
    if record.coding == "none":
        return archive.packed_codes(layer, plane), record.layout
    codes, layout = archive.codes(layer, plane), natural_layout(record.levels)
    if layout == "trits":
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % TRITS_PER_BYTE)))
        powers = 3 ** np.arange(TRITS_PER_BYTE, dtype=np.uint8)
        packed: Array = (padded.reshape(len(codes), -1, TRITS_PER_BYTE) * powers).sum(-1).astype(np.uint8)
        return packed, layout
    bits = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=bits_for(record.levels))
    return np.packbits(bits.reshape(len(codes), -1), axis=-1, bitorder="little"), layout


def _unpacked(graph: Graph, packed: str, length: int, levels: int, layout: Layout) -> str:
    """Packed rows (rows, bytes) to codes (rows, length): uint8, or int32 from trits and bits that cross bytes."""
    if layout == "bytes":
        return packed
    each = graph.node("Unsqueeze", packed, graph.constant([2]))
    if layout == "trits":
        powers = graph.constant((3 ** np.arange(TRITS_PER_BYTE)).astype(np.int32))
        digits = graph.node("Mod", graph.node("Div", graph.cast(each, "int32"), powers), graph.constant(3, np.int32))
        return _cut(graph, digits, length, TRITS_PER_BYTE)
    bits = bits_for(levels)
    if bits == 8:
        return packed
    whole = bits in (1, 2, 4)
    width = bits if whole else 1
    shifts = graph.constant(np.arange(0, 8, width, dtype=np.uint8))
    lowest = graph.constant(2**width - 1, np.uint8)
    codes = graph.node("BitwiseAnd", graph.node("BitShift", each, shifts, direction="RIGHT"), lowest)
    if whole:
        return _cut(graph, codes, length, 8 // bits)
    stream = graph.node("Reshape", _cut(graph, codes, length * bits, 8), graph.constant([0, length, bits]))
    values = graph.node("Mul", graph.cast(stream, "int32"), graph.constant((2 ** np.arange(bits)).astype(np.int32)))
    return graph.node("ReduceSum", values, graph.constant([2]), keepdims=0)


def _cut(graph: Graph, codes: str, length: int, per_byte: int) -> str:
    """(rows, bytes, codes per byte) to (rows, length)."""
    flat = graph.node("Reshape", codes, graph.constant([0, -1]))
    if length % per_byte == 0:
        return flat
    return graph.node("Slice", flat, graph.constant([0]), graph.constant([length]), graph.constant([1]))


def _mask(graph: Graph, archive: Archive, layer: LayerRecord) -> str:
    """True where a weight is not pruned, in the layer's shape."""
    row = layer.weights // layer.shape[0]
    bits = _unpacked(graph, graph.constant(archive.tensors[layer.tensor("mask")]), row, 2, "bits")
    return graph.cast(graph.node("Reshape", bits, graph.constant(list(layer.shape))), "bool")
