"""Packing of embeddings into the rows of codes that the C library looks up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitstill.artifact.format import LayerRecord, PlaneRecord
from bitstill.artifact.reader import Archive
from bitstill.artifact.validate import DAMAGED
from bitstill.errors import ArtifactError
from bitstill.quant.layouts import bits_for, packed_length
from bitstill.runtime import structs as structures
from bitstill.runtime.held import Held, leftover_weight
from bitstill.runtime.structs import PLANES


@dataclass
class Table:
    """A layer's weight as rows to look up."""

    struct: structures.Table
    held: Held


def table(archive: Archive, layer: str) -> Table:
    """Pack the weight of an embedding; without entropy coding, the bytes of the file are used directly."""
    record, held = archive.layers.get(layer), Held()
    if record is None:
        weight = leftover_weight(archive, layer, (2,))
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
