"""Packing of linear layers and convolutions into the lines of codes that the C library multiplies."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np

from bitstill.artifact.format import LayerRecord, PlaneRecord
from bitstill.artifact.reader import Archive
from bitstill.program.levels import kept_weights
from bitstill.quant.granularity import Bucket
from bitstill.quant.layouts import Layout, bits_for
from bitstill.runtime import structs as structures
from bitstill.runtime.held import Array, Held, leftover_weight
from bitstill.runtime.structs import LINE, PANEL, PLANES, aligned

LAYOUTS = {"bits": 0, "trits": 1, "bytes": 2}
NIBBLES = 16
"""`BS_NIBBLES`: single bits as indices into tables of sums of four inputs."""
GROUP = 32
"""Groups of inputs begin at a line of any number of bits."""


@dataclass
class Matrix:
    """A layer's weight for products with rows of inputs.

    Args:
        struct: structure for C.
        held: arrays referenced by it.
        by_integers: whether codes of inputs can be multiplied; otherwise floats are.
    """

    struct: structures.Matrix
    held: Held
    by_integers: bool


def matrix(archive: Archive, layer: str, library: ctypes.CDLL, tier: int | None = None) -> Matrix:
    """Pack the weight of a linear layer or a convolution; as floats if it is uncompressed or has flat buckets.

    A convolution's inputs are in the order height, width, channel.

    Args:
        archive, layer: layer of the weight.
        library: the C library.
        tier: address of the instruction set that will multiply it; None is the one in use.
    """
    record = archive.layers.get(layer)
    if record is None:
        return _dense(leftover_weight(archive, layer, (2, 4)))
    grouped = record.grid.groups > 1
    if isinstance(record.granularity, Bucket) or (grouped and len(record.shape) > 2) or len(record.planes) > PLANES:
        return _dense(archive.weight(layer))
    return _MatrixPacker(archive, record, library, tier).pack()


@dataclass(frozen=True)
class _Products:
    """Arithmetic of the planes of a layer.

    Args:
        recoded: planes get an extra code for zero, for pruned weights.
        by_integers: codes of weights are multiplied with codes of inputs; otherwise floats are.
        shifted: codes of inputs have a zero point, whose contribution is subtracted by sums of weights.
        single: every plane has one bit.
    """

    recoded: bool
    by_integers: bool
    shifted: bool
    single: bool

    @classmethod
    def of(cls, record: LayerRecord, group: int) -> _Products:
        """Those of a layer whose scales cover `group` inputs each."""
        grouped = record.grid.groups > 1
        whole = all(plane.first is not None for plane in record.planes)
        recoded = record.mask and whole and not any(plane.offset for plane in record.planes)
        shifted = record.input is not None and not record.input["symmetric"]
        # No code stands for the zeros around an image whose values are shifted.
        edges = shifted and record.input is not None and record.input["range"] == "step" and len(record.shape) > 2
        by_integers = (
            record.input is not None
            and not edges
            and whole
            and (recoded or not record.mask)
            and (not grouped or record.grid.size % GROUP == 0)
            and all(_fits_int32(plane, group, recoded) for plane in record.planes)
        )
        single = all((3 if recoded else plane.levels) <= 2 for plane in record.planes)
        return cls(recoded, by_integers, shifted, single)


class _MatrixPacker:
    """Packer of the planes of one layer.

    Args:
        archive, record: the layer.
        library: which packs it.
        tier: address of the instruction set that will multiply it; None is the one in use.
    """

    def __init__(self, archive: Archive, record: LayerRecord, library: ctypes.CDLL, tier: int | None) -> None:
        self.archive, self.record, self.library, self.tier = archive, record, library, tier
        self.held = Held()
        outputs, inputs, grouped = record.shape[0], record.weights // record.shape[0], record.grid.groups > 1
        self.struct = structures.Matrix(
            outputs=outputs,
            inputs=inputs,
            padded=aligned(inputs),
            groups=record.grid.groups if grouped else 1,
            group=record.grid.size if grouped else inputs,
            planes=len(record.planes),
        )
        self.products = _Products.of(record, self.struct.group)

    def pack(self) -> Matrix:
        """The layer's weight for products."""
        products, totals = self.products, np.zeros(self.record.shape[0])
        for index in range(len(self.record.planes)):
            rows, plane = self._codes(index)
            self._fill(index, rows, plane)
            if products.by_integers and products.shifted:
                totals += self._sums(index, rows)
        if self.record.mask and not products.recoded:
            self.struct.mask = self.held.at(pack_lines(self._mask(), 1, 0, self.struct.padded, self.library), np.uint8)
        if products.by_integers and products.shifted:
            self.struct.weight_sums = self.held.at(_by_panel(totals[:, None]))
        return Matrix(self.struct, self.held, products.by_integers)

    def _codes(self, index: int) -> tuple[Array, PlaneRecord]:
        """Codes of a plane, uint8 (outputs, inputs), and its record."""
        plane = self.record.planes[index]
        codes = self.archive.codes(self.record, index, functools.partial(_unpacked, self.library))
        if self.products.recoded:
            codes, plane = _with_zero(codes, plane, kept_weights(self.archive, self.record))
        return _inputs_last(codes.reshape(self.record.shape)), plane

    def _mask(self) -> Array:
        """Mask of weights that are not pruned, uint8 (outputs, inputs)."""
        mask = kept_weights(self.archive, self.record)
        assert mask is not None
        return _inputs_last(mask.reshape(self.record.shape).astype(np.uint8))

    def _fill(self, index: int, rows: Array, plane: PlaneRecord) -> None:
        """One plane of the matrix; in the form that is best for products of so many bits, or in lines."""
        to, bits = self.struct.plane[index], bits_for(plane.levels)
        for place, (width, shift) in enumerate(slices_of(bits)):
            best = self.products.by_integers and self.products.single
            form = self.library.bs_best_form(self.tier, width) if best else width
            to.bits[place], to.shift[place], to.form[place] = width, shift, form
            to.lines[place] = self.held.at(pack_lines(rows, form, shift, self.struct.padded, self.library), np.uint8)
            to.slices = place + 1
        to.first, to.step = (0, 0) if plane.first is None else (plane.first, plane.step)
        evenly = None if plane.first is None else plane.first + plane.step * np.arange(plane.levels)
        levels = self.archive.levels(self.record, index) if evenly is None else evenly
        to.levels = self.held.at(np.pad(levels, (0, 2**bits - plane.levels)))
        to.scale = self.held.at(_by_panel(self._row_numbers("scale", index)))
        if plane.offset:
            to.offset = self.held.at(_by_panel(self._row_numbers("offset", index)))

    def _sums(self, index: int, rows: Array) -> Array:
        """Sums of codes, for zero points of inputs. Returns the sum of the weights of each output, for shifts of inputs."""
        to, scale = self.struct.plane[index], self._row_numbers("scale", index)
        edges = np.arange(scale.shape[1]) * (self.record.grid.size if scale.shape[1] > 1 else rows.shape[1])
        sums = np.add.reduceat(rows.astype(np.int32), edges, axis=1)
        to.sums = self.held.at(_by_panel(sums), np.int32)
        sizes = np.diff(np.append(edges, rows.shape[1]))
        weights = (to.step * sums.astype(np.float64) + to.first * sizes) * scale
        if self.record.planes[index].offset:
            weights += self._row_numbers("offset", index) * sizes
        total: Array = weights.sum(1)
        return total

    def _row_numbers(self, kind: str, plane: int) -> Array:
        """Scales or offsets, (outputs, groups)."""
        numbers = self.archive.tensors[self.record.tensor(kind, plane)].astype(np.float32)
        return np.broadcast_to(numbers, (self.record.shape[0], numbers.shape[1]))


def pack_lines(rows: Array, form: int, shift: int, padded: int, library: ctypes.CDLL) -> Array:
    """Bits `shift` and up of codes as the library's lines, uint8.

    Args:
        rows: codes (outputs, inputs).
        form: bits of a line, or `NIBBLES`.
        shift: the first bit.
        padded: inputs with room up to a whole line.
        library: which packs them.
    """
    outputs, inputs = rows.shape
    bits = 1 if form == NIBBLES else form
    lines = np.empty(-(-outputs // PANEL) * (padded * bits // 32) * LINE, np.uint8)
    rows = np.ascontiguousarray(rows)
    library.bs_pack_lines(rows.ctypes.data, outputs, inputs, padded, form, shift, lines.ctypes.data)
    return lines


def _fits_int32(plane: PlaneRecord, inputs: int, recoded: bool) -> bool:
    """Whether sums of products over so many inputs always fit into 32 bits."""
    assert plane.first is not None
    ends = [plane.first, plane.first + plane.step * (plane.levels - 1), *([0] if recoded else [])]
    return inputs * 255 * max(max(ends) - min(ends), *map(abs, ends)) < 2**31


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


def _with_zero(codes: Array, plane: PlaneRecord, mask: Array | None) -> tuple[Array, PlaneRecord]:
    """Codes with an extra code for pruned weights, for levels without zero."""
    assert plane.first is not None and mask is not None
    levels = np.where(mask.reshape(codes.shape), plane.first + plane.step * codes.astype(np.int16), 0)
    low, high = min(plane.first, 0), max(plane.first + plane.step * (plane.levels - 1), 0)
    recoded = PlaneRecord(high - low + 1, low, 1, offset=False, layout="bits", coding="none")
    return (levels - low).astype(np.uint8), recoded


def _unpacked(library: ctypes.CDLL, packed: Array, length: int, levels: int, layout: Layout) -> Array:
    """Rows of codes, uint8 (rows, length), by the library."""
    packed = np.ascontiguousarray(packed)
    rows, size = packed.shape
    codes = np.empty((rows, length), np.uint8)
    at, to = packed.ctypes.data, codes.ctypes.data
    library.bs_unpack_rows(at, rows, length, size, LAYOUTS[layout], bits_for(levels), to)
    return codes


def slices_of(bits: int) -> list[tuple[int, int]]:
    """Pieces of 4, 2 and 1 bits that make up so many: (bits, shift)."""
    slices, shift = [], 0
    for wide in (4, 4, 2, 1):
        if bits - shift >= wide:
            slices.append((wide, shift))
            shift += wide
    return slices


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
