"""Weights of an artifact in the forms that the C library reads: lines for products, packed rows for tables."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.format import LayerRecord, PlaneRecord
from bitstill.artifact.reader import DAMAGED, Archive
from bitstill.errors import ArtifactError
from bitstill.program.levels import kept_weights
from bitstill.quant.granularity import Bucket
from bitstill.quant.layouts import Layout, bits_for, packed_length
from bitstill.runtime import structs as structures
from bitstill.runtime.structs import LINE, PANEL, PLANES, Range, aligned

Array = npt.NDArray[Any]
_LAYOUTS = {"bits": 0, "trits": 1, "bytes": 2}
NIBBLES = 16
"""`BS_NIBBLES`: single bits as indices into tables of sums of four inputs."""
GROUP = 32
"""Groups of inputs begin at a line of any number of bits."""


@dataclass
class Held:
    """Arrays that a structure points into, kept alive with it."""

    arrays: list[Array] = field(default_factory=list)

    def at(self, values: Array, dtype: Any = np.float32) -> int:
        """Address of the values, as that type."""
        self.arrays.append(np.ascontiguousarray(values, dtype))
        return int(self.arrays[-1].ctypes.data)

    def channels(self, values: Array) -> int:
        """Address of one number for each channel, with room up to a whole panel behind."""
        return self.at(np.pad(values.astype(np.float32), (0, -len(values) % PANEL)))

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)


@dataclass
class Matrix:
    """A layer's weight for products with rows of inputs.

    Args:
        struct: what C reads.
        held: what it points into.
        by_integers: whether codes of inputs can be multiplied; else floats are.
    """

    struct: structures.Matrix
    held: Held
    by_integers: bool


@dataclass
class Table:
    """A layer's weight as rows to look up."""

    struct: structures.Table
    held: Held


def rule_of(archive: Archive, transform: str, rule: Mapping[str, Any]) -> structures.Rule:
    """How a value is quantized, all but the rows that share a range.

    Args:
        archive: the artifact.
        transform: name under which learned bounds and steps are stored.
        rule: the fields of `QuantizeInput`.

    Raises:
        ArtifactError: a learned bound or step is missing.
    """
    bits, symmetric, kind = (rule[name] for name in ("bits", "symmetric", "range"))
    bounds = {name: float(number) for name, number in archive.learned(transform, rule).items()}
    return structures.Rule(bits=bits, symmetric=symmetric, range=Range[kind.upper()], **bounds)


def matrix(archive: Archive, layer: str, library: ctypes.CDLL, tier: int | None = None) -> Matrix:
    """The weight of a linear layer or a convolution, packed; as floats where it was not compressed or has flat buckets.

    A convolution's inputs are in the order height, width, channel.

    Args:
        archive, layer: whose weight.
        library: which packs it.
        tier: address of the instruction set that will multiply it; None is the one in use.
    """
    record = archive.layers.get(layer)
    if record is None:
        return _dense(_leftover(archive, layer, (2, 4)))
    grouped = record.grid.groups > 1
    if isinstance(record.granularity, Bucket) or (grouped and len(record.shape) > 2) or len(record.planes) > PLANES:
        return _dense(archive.weight(layer))
    held, inputs = Held(), record.weights // record.shape[0]
    padded = aligned(inputs)
    offsets = any(plane.offset for plane in record.planes)
    whole = all(plane.first is not None for plane in record.planes)
    recoded = record.mask and whole and not offsets
    struct = structures.Matrix(
        outputs=record.shape[0],
        inputs=inputs,
        padded=padded,
        groups=record.grid.groups if grouped else 1,
        group=record.grid.size if grouped else inputs,
        planes=len(record.planes),
    )
    shifted = record.input is not None and not record.input["symmetric"]
    # No code stands for the zeros around a picture whose values are shifted.
    edges = shifted and record.input is not None and record.input["range"] == "step" and len(record.shape) > 2
    by_integers = (
        record.input is not None
        and not edges
        and whole
        and (recoded or not record.mask)
        and (not grouped or record.grid.size % GROUP == 0)
        and all(_fits_int32(plane, struct.group, recoded) for plane in record.planes)
    )
    single = all((3 if recoded else plane.levels) <= 2 for plane in record.planes)
    totals = np.zeros(record.shape[0])
    for index, plane in enumerate(record.planes):
        codes = archive.codes(record, index, functools.partial(_unpacked, library))
        if recoded:
            codes, plane = _with_zero(codes, plane, kept_weights(archive, record))
        rows = _inputs_last(codes.reshape(record.shape))
        form = functools.partial(library.bs_best_form, tier) if by_integers and single else None
        _fill(struct.plane[index], held, archive, record, index, rows, plane, library, padded, form)
        if by_integers and shifted:
            totals += _sums(struct.plane[index], held, archive, record, index, rows)
    if record.mask and not recoded:
        kept = kept_weights(archive, record)
        assert kept is not None
        rows = _inputs_last(kept.reshape(record.shape).astype(np.uint8))
        struct.mask = held.at(_lines(rows, 1, 0, padded, library), np.uint8)
    if by_integers and shifted:
        struct.weight_sums = held.at(_by_panel(totals[:, None]))
    return Matrix(struct, held, by_integers)


def table(archive: Archive, layer: str) -> Table:
    """The weight of an embedding, in the very bytes of the file where they are not compressed further."""
    record, held = archive.layers.get(layer), Held()
    if record is None:
        weight = _leftover(archive, layer, (2,))
        struct = structures.Table(rows=weight.shape[0], length=weight.shape[1], dense=held.at(weight))
        return Table(struct, held)
    if len(record.shape) != 2:
        raise ArtifactError("a table of rows", given=f"shape {record.shape}", where=layer, fix=DAMAGED)
    sizes = _bytes_of_row(record)
    if sizes is None:
        struct = structures.Table(rows=record.shape[0], length=record.shape[1], dense=held.at(archive.weight(layer)))
        return Table(struct, held)
    grid = record.grid
    rows, length = record.shape
    struct = structures.Table(
        rows=rows, length=length, groups=grid.groups, group=grid.size, scale_rows=grid.rows, planes=len(record.planes)
    )
    for index, plane in enumerate(record.planes):
        to = struct.plane[index]
        to.codes, to.bytes = held.at(archive.packed_codes(record, index), np.uint8), sizes[index]
        to.trits, to.bits = plane.layout == "trits", 8 if plane.layout == "bytes" else bits_for(plane.levels)
        # A code that no level has reads a zero rather than what lies behind.
        to.levels = held.at(np.pad(archive.levels(record, index), (0, 2**to.bits - plane.levels)))
        to.scale = held.at(archive.tensors[record.tensor("scale", index)])
        if plane.offset:
            to.offset = held.at(archive.tensors[record.tensor("offset", index)])
    if record.mask:
        packed = archive.tensors[record.tensor("mask")]
        struct.mask, struct.mask_bytes = held.at(packed, np.uint8), packed.shape[1]
    return Table(struct, held)


def _leftover(archive: Archive, layer: str, dimensions: tuple[int, ...]) -> Array:
    """The weight of a layer that was not compressed.

    Raises:
        ArtifactError: there is none, or one of another kind of layer.
    """
    name = f"{layer}.weight"
    weight = archive.tensors.get(name)
    if weight is None or weight.ndim not in dimensions or weight.size == 0:
        wanted, given = f"a tensor of {dimensions[0]} dimensions", "none" if weight is None else f"shape {weight.shape}"
        raise ArtifactError(wanted, given=given, where=name, fix=DAMAGED)
    return weight


def _fits_int32(plane: PlaneRecord, inputs: int, recoded: bool) -> bool:
    """Whether no sum over so many inputs can leave 32 bits: of codes less zero points, times codes of weights or levels."""
    assert plane.first is not None
    ends = [plane.first, plane.first + plane.step * (plane.levels - 1), *([0] if recoded else [])]
    return inputs * 255 * max(max(ends) - min(ends), *map(abs, ends)) < 2**31


def _bytes_of_row(record: LayerRecord) -> list[int] | None:
    """Bytes of a row of each plane's codes; None where rows of the table do not begin at bytes, or are not rows of the file."""
    rows, length = record.shape
    if len(record.planes) > PLANES or _is_bitmap(record):
        return None
    if record.grid.rows == rows:
        return [packed_length(length, plane.levels, plane.layout) for plane in record.planes]
    if record.grid.groups > 1:
        return None
    if not all(_fills_bytes(plane, length) for plane in record.planes):
        return None
    return [packed_length(length, plane.levels, plane.layout) for plane in record.planes]


def _fills_bytes(plane: PlaneRecord, length: int) -> bool:
    """Whether a row of so many codes ends where a byte does; rows follow each other in one row of the file."""
    return length % 5 == 0 if plane.layout == "trits" else plane.layout == "bytes" or length * bits_for(plane.levels) % 8 == 0


def _is_bitmap(record: LayerRecord) -> bool:
    return any(plane.coding == "bitmap" for plane in record.planes)


def _dense(weight: Array) -> Matrix:
    held, rows = Held(), _inputs_last(weight.astype(np.float32))
    outputs, inputs = rows.shape
    struct = structures.Matrix(
        outputs=outputs,
        inputs=inputs,
        padded=aligned(inputs),
        groups=1,
        group=inputs,
        dense=held.at(_by_panel(rows)),
    )
    return Matrix(struct, held, by_integers=False)


def _fill(
    to: structures.Plane,
    held: Held,
    archive: Archive,
    record: LayerRecord,
    index: int,
    rows: Array,
    plane: PlaneRecord,
    library: ctypes.CDLL,
    padded: int,
    best_form: Callable[[int], int] | None,
) -> None:
    """One plane of a matrix; in the form that is best for products of so many bits, or in lines."""
    bits = bits_for(plane.levels)
    for place, (wide, shift) in enumerate(_slices(bits)):
        form = wide if best_form is None else best_form(wide)
        to.bits[place], to.shift[place], to.form[place] = wide, shift, form
        to.lines[place] = held.at(_lines(rows, form, shift, padded, library), np.uint8)
        to.slices = place + 1
    to.first, to.step = (0, 0) if plane.first is None else (plane.first, plane.step)
    levels = archive.levels(record, index) if plane.first is None else plane.first + plane.step * np.arange(plane.levels)
    to.levels = held.at(np.pad(levels, (0, 2**bits - plane.levels)))
    to.scale = held.at(_by_panel(_row_numbers(archive, record, "scale", index)))
    if plane.offset:
        to.offset = held.at(_by_panel(_row_numbers(archive, record, "offset", index)))


def _sums(to: structures.Plane, held: Held, archive: Archive, record: LayerRecord, index: int, rows: Array) -> Array:
    """Sums of codes, kept for zero points of inputs; returns the sum of the weights of each output, for shifts of inputs."""
    scale = _row_numbers(archive, record, "scale", index)
    edges = np.arange(scale.shape[1]) * (record.grid.size if scale.shape[1] > 1 else rows.shape[1])
    sums = np.add.reduceat(rows.astype(np.int32), edges, axis=1)
    to.sums = held.at(_by_panel(sums), np.int32)
    sizes = np.diff(np.append(edges, rows.shape[1]))
    weights = (to.step * sums.astype(np.float64) + to.first * sizes) * scale
    if record.planes[index].offset:
        weights += _row_numbers(archive, record, "offset", index) * sizes
    total: Array = weights.sum(1)
    return total


def _row_numbers(archive: Archive, record: LayerRecord, kind: str, plane: int) -> Array:
    """Scales or offsets, (outputs, groups)."""
    numbers = archive.tensors[record.tensor(kind, plane)].astype(np.float32)
    return np.broadcast_to(numbers, (record.shape[0], numbers.shape[1]))


def _with_zero(codes: Array, plane: PlaneRecord, kept: Array | None) -> tuple[Array, PlaneRecord]:
    """Codes among which one means zero, for levels that had none where weights were pruned."""
    assert plane.first is not None and kept is not None
    levels = np.where(kept.reshape(codes.shape), plane.first + plane.step * codes.astype(np.int16), 0)
    low, high = min(plane.first, 0), max(plane.first + plane.step * (plane.levels - 1), 0)
    recoded = PlaneRecord(high - low + 1, low, 1, offset=False, layout="bits", coding="none")
    return (levels - low).astype(np.uint8), recoded


def _unpacked(library: ctypes.CDLL, packed: Array, length: int, levels: int, layout: Layout) -> Array:
    """Rows of codes, uint8 (rows, length), by the library."""
    packed = np.ascontiguousarray(packed)
    rows, size = packed.shape
    codes = np.empty((rows, length), np.uint8)
    at, to = packed.ctypes.data, codes.ctypes.data
    library.bs_unpack_rows(at, rows, length, size, _LAYOUTS[layout], bits_for(levels), to)
    return codes


def _slices(bits: int) -> list[tuple[int, int]]:
    """Pieces of 4, 2 and 1 bits that make up so many: (bits, shift)."""
    slices, shift = [], 0
    for wide in (4, 4, 2, 1):
        if bits - shift >= wide:
            slices.append((wide, shift))
            shift += wide
    return slices


def _lines(rows: Array, form: int, shift: int, padded: int, library: ctypes.CDLL) -> Array:
    outputs, inputs = rows.shape
    bits = 1 if form == NIBBLES else form
    lines = np.empty(-(-outputs // PANEL) * (padded * bits // 32) * LINE, np.uint8)
    rows = np.ascontiguousarray(rows)
    library.bs_pack_lines(rows.ctypes.data, outputs, inputs, padded, form, shift, lines.ctypes.data)
    return lines


def _by_panel(rows: Array) -> Array:
    """(outputs, n) -> (panels, n, 16), with zeros behind the last output."""
    outputs, n = rows.shape
    padded = np.pad(rows, ((0, -outputs % PANEL), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, PANEL, n).transpose(0, 2, 1))


def _inputs_last(weight: Array) -> Array:
    """(outputs, inputs), a convolution's inputs from the channel inwards to height, width, channel."""
    if weight.ndim == 4:
        weight = weight.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(weight.reshape(weight.shape[0], -1))
