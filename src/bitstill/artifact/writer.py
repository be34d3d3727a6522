"""Writing of artifacts from codes: each weight once, in its smallest encoding. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitstill import _version
from bitstill.artifact import codes, coding
from bitstill.artifact.digests import with_digests
from bitstill.artifact.files import write_file
from bitstill.artifact.format import (
    CONFIG,
    FORMAT_VERSIONS,
    METADATA,
    SETTINGS,
    WEIGHTS,
    LayerRecord,
    PlaneRecord,
    most_weights,
    records_digest,
)
from bitstill.constraints import check_fields
from bitstill.quant.granularity import Granularity
from bitstill.quant.layouts import Layout, natural_layout

Array = npt.NDArray[Any]
LeftoverDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Storage:
    """Storage options of an artifact.

    Args:
        leftovers: dtype of everything that is not quantized.
        entropy_coding: store codes as Zstandard frames if that is smaller; "pruned" does so only for layers with masks, whose
            zeros make it worthwhile. For such layers, with any setting, a bitmap of non-zeros followed by their codes is also
            tried if a level is zero. All are unpacked when loaded.
    """

    leftovers: LeftoverDtype = "float32"
    entropy_coding: bool | Literal["pruned"] = "pruned"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class PlaneContent:
    """One plane of a weight.

    Args:
        codes: uint8 (rows, row length): indices of levels.
        levels: sorted float32 (levels,).
        scale: float32 (rows, groups per row).
        offset: the same, or None if levels are symmetric.
    """

    codes: Array
    levels: Array
    scale: Array
    offset: Array | None


@dataclass(frozen=True, eq=False)
class WeightContent:
    """A quantized weight as codes. Layers with a shared weight hold the same object, which is stored once.

    Args:
        shape: the weight's, rows first.
        granularity: which weights share a scale.
        quantizer: its name, for reports.
        scale_dtype: "float32" or "float16", the precision in which scales and offsets are stored.
        planes: one or more, which are summed.
        mask: bool of `shape`, False where pruned; None if nothing is pruned, or a level represents pruned weights.
        pruned: whether to try encodings for sparse codes.
    """

    shape: tuple[int, ...]
    granularity: Granularity
    quantizer: str
    scale_dtype: str
    planes: tuple[PlaneContent, ...]
    mask: Array | None
    pruned: bool


@dataclass(frozen=True, eq=False)
class LayerContent:
    """One packed layer.

    Args:
        kind: its kind, as in `LayerRecord`.
        weight: its codes.
        input: settings of its input quantizer, or None.
    """

    kind: str
    weight: WeightContent
    input: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Contents:
    """The stored contents of a model.

    Args:
        layers: packed layers by dotted module name.
        leftovers: every other parameter and buffer by name, each shared one once.
    """

    layers: Mapping[str, LayerContent]
    leftovers: Mapping[str, Array]


def write(folder: Path, contents: Contents, config: Mapping[str, Any], storage: Storage) -> None:
    """Write `model.safetensors` and `config.json` into `folder`.

    Args:
        folder: an existing folder.
        contents: the model.
        config: the architecture and other entries for loading; `quantization_config` is added.
        storage: dtype of leftovers, entropy coding.
    """
    from safetensors.numpy import save

    tensors, layers = encode(contents, storage)
    records = {layer.name: layer.to_json() for layer in layers}
    # A single key: safetensors writes several in random order, and a run must always give the same bytes.
    data = save(tensors, {METADATA: records_digest(records)})
    settings = {
        "quant_method": "bitstill",
        "version": FORMAT_VERSIONS[-1],
        "written_by": _version.__version__,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "leftovers": storage.leftovers,
        "layers": records,
    }
    write_file(folder / WEIGHTS, data)
    text = json.dumps(with_digests({**config, SETTINGS: settings}, folder), indent=1)
    write_file(folder / CONFIG, text.encode())


def encode(contents: Contents, storage: Storage) -> tuple[dict[str, Array], list[LayerRecord]]:
    """Tensors to store, each weight once, and a record for each packed layer."""
    tensors = {name: _leftover(tensor, storage) for name, tensor in contents.leftovers.items()}
    records: list[LayerRecord] = []
    first: dict[int, LayerRecord] = {}
    for name, layer in contents.layers.items():
        known = first.get(id(layer.weight))
        if known is None:
            record, its_tensors = _encode_layer(name, layer, storage, contents.leftovers)
            first[id(layer.weight)] = record
            tensors |= its_tensors
        else:
            record = _record(name, layer, known.stored_as, known.planes)
        records.append(record)
    return tensors, records


def _encode_layer(
    name: str, layer: LayerContent, storage: Storage, leftovers: Mapping[str, Array]
) -> tuple[LayerRecord, dict[str, Array]]:
    weight = layer.weight
    encoded = [_encode_codes(plane, weight, storage) for plane in weight.planes]
    planes = tuple(
        PlaneRecord(len(plane.levels), *_integer_levels(plane.levels), plane.offset is not None, layout, how)
        for plane, (_, layout, how) in zip(weight.planes, encoded, strict=True)
    )
    record = _record(name, layer, name, planes)
    if record.tensors().keys() & leftovers.keys():  # a user's buffer has the name of one of ours
        record = _record(name, layer, f"{name}.packed", planes)
    tensors: dict[str, Array] = {}
    for index, plane in enumerate(weight.planes):
        parts = {"codes": encoded[index][0], "scale": plane.scale.astype(weight.scale_dtype), "levels": plane.levels}
        if plane.offset is not None:
            parts["offset"] = plane.offset.astype(weight.scale_dtype)
        tensors |= {record.tensor(kind, index): part for kind, part in parts.items()}
    if weight.mask is not None:
        rows = weight.mask.reshape(weight.shape[0], -1)
        tensors[record.tensor("mask")] = np.packbits(rows, axis=-1, bitorder="little")
    return record, {name: tensors[name] for name in record.tensors()}


def _record(name: str, layer: LayerContent, stored_as: str, planes: tuple[PlaneRecord, ...]) -> LayerRecord:
    weight = layer.weight
    return LayerRecord(
        name=name,
        kind=layer.kind,
        shape=weight.shape,
        granularity=weight.granularity,
        quantizer=weight.quantizer,
        scale_dtype=weight.scale_dtype,
        planes=planes,
        mask=weight.mask is not None,
        input=layer.input,
        stored_as=stored_as,
    )


def _encode_codes(plane: PlaneContent, weight: WeightContent, storage: Storage) -> tuple[Array, Layout, str]:
    """Smallest encoding of codes: packed, as a bitmap and non-zero codes, or as a frame; with its layout and coding."""
    levels = len(plane.levels)
    layout = natural_layout(levels)
    packed = codes.pack(plane.codes, levels, layout)
    ways: list[tuple[Array, Layout, str]] = [(packed, layout, "none")]
    if not (weight.pruned or storage.entropy_coding is True):
        return ways[0]
    zero = np.flatnonzero(plane.levels == 0)
    if weight.pruned and plane.offset is None and zero.size and levels > 2:
        ways.append((_bitmap(plane.codes, int(zero[0]), levels), natural_layout(levels - 1), "bitmap"))
    if storage.entropy_coding:
        ways.append((_frame(packed), layout, "zstd"))
        ways.append((_frame(plane.codes), "bytes", "zstd"))
    within = [way for way in ways if plane.codes.size <= most_weights(way[0].size)]
    return min(within, key=lambda way: way[0].size)


def _bitmap(single: Array, zero: int, levels: int) -> Array:
    """Bitmap of codes other than that of zero, followed by these codes, numbered without it, packed as one row."""
    there = single.ravel() != zero
    rest = single.ravel()[there]
    rest = rest - (rest > zero).astype(np.uint8)
    packed = codes.pack(rest[None], levels - 1, natural_layout(levels - 1))
    return np.concatenate([np.packbits(there, bitorder="little"), packed.ravel()])


def _frame(single: Array) -> Array:
    return np.frombuffer(coding.compress(single.tobytes()), np.uint8)


def _integer_levels(levels: Array) -> tuple[int | None, int]:
    """First level and step if the levels are evenly spaced integers, so that they need no tensor; else (None, 0)."""
    first, step = float(levels[0]), float(levels[1] - levels[0])
    even = np.arange(len(levels), dtype=np.float32) * np.float32(step) + np.float32(first)
    if step >= 1 and step.is_integer() and first.is_integer() and np.array_equal(levels, even):
        return int(first), int(step)
    return None, 0


def _leftover(tensor: Array, storage: Storage) -> Array:
    return tensor.astype(storage.leftovers) if np.issubdtype(tensor.dtype, np.floating) else tensor


__all__ = ["Contents", "LayerContent", "PlaneContent", "Storage", "WeightContent", "encode", "write"]
