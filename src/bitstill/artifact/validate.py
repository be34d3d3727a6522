"""Checks of all tensors in an artifact, shared by all readers: shapes, finite numbers, valid codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.format import CONFIG, WEIGHTS, LayerRecord, most_weights
from bitstill.errors import ArtifactError
from bitstill.quant.layouts import Layout, bits_for, packed_length

Array = npt.NDArray[Any]
DAMAGED = "The file is damaged; deliver the model again."
_MOST_TRITS = 3**5 - 1
"""Maximum byte value of five ternary codes."""
_CHUNK = 2**18
"""Bytes checked at a time; small enough for the processor's cache."""


def check_layer(layer: LayerRecord, tensors: Mapping[str, Array]) -> None:
    """Check that all tensors of a packed layer exist and have the type and shape in its record.

    Raises:
        ArtifactError: a tensor is missing or differs, or the record claims more weights than its codes can represent.
    """
    expected = {name: layer.grid.scale_shape for name, kind in layer.tensors().items() if kind in ("scale", "offset")}
    if layer.mask:
        row = layer.weights // layer.shape[0]
        expected[layer.tensor("mask")] = (layer.shape[0], packed_length(row, 2, "bits"))
    for index, plane in enumerate(layer.planes):
        if plane.coding == "none":
            width = packed_length(layer.grid.length, plane.levels, plane.layout)
            expected[layer.tensor("codes", index)] = (layer.grid.rows, width)
        if plane.first is None:
            expected[layer.tensor("levels", index)] = (plane.levels,)  # type: ignore[assignment]
    for name, kind in layer.tensors().items():
        tensor = tensors.get(name)
        dtypes = ("uint8",) if kind in ("codes", "mask") else ("float32", "float16")
        if tensor is None or (name in expected and tensor.shape != expected[name]) or tensor.dtype.name not in dtypes:
            wanted = f"a tensor {name} of {dtypes[0]} and shape {expected.get(name, 'any')}"
            raise _error(wanted, "none" if tensor is None else f"{tensor.dtype.name}, shape {tensor.shape}", name)
        if kind == "codes" and layer.weights > most_weights(tensor.nbytes):
            raise _error(f"at most {most_weights(tensor.nbytes)} weights in {tensor.nbytes} bytes", str(layer.weights), name)


def check_values(layer: LayerRecord, tensors: Mapping[str, Array]) -> None:
    """Check that scales, offsets and levels are finite, and that codes without entropy coding are valid.

    Raises:
        ArtifactError: a number is not finite, or a code is invalid.
    """
    for name, kind in layer.tensors().items():
        if kind in ("scale", "offset", "levels"):
            check_finite(name, tensors[name])
    for index, plane in enumerate(layer.planes):
        if plane.coding == "none":
            name = layer.tensor("codes", index)
            check_codes(tensors[name], plane.levels, plane.layout, name)


def check_codes(packed: Array, levels: int, layout: Layout, name: str) -> None:
    """Check that packed codes (rows, bytes) are below `levels`, including unused bits at the ends of rows.

    Raises:
        ArtifactError: a code is too large.
    """
    highest = _highest_code(np.atleast_2d(packed), levels, layout)
    if highest >= levels:
        raise _error(f"codes below {levels}", str(highest), name)


def check_leftover(name: str, tensor: Array) -> None:
    """Check that a leftover holds finite numbers and that variances are non-negative.

    Raises:
        ArtifactError: a number is not finite, or a variance is negative.
    """
    check_finite(name, tensor)
    if name.rpartition(".")[2] == "running_var" and tensor.size and not tensor.min() >= 0:
        raise _error("variances of at least 0", str(tensor.min()), name)


def check_finite(name: str, tensor: Array) -> None:
    """Check that no number is NaN or infinite.

    Raises:
        ArtifactError: a number is, or the tensor is complex.
    """
    if tensor.dtype.kind == "c":
        raise _error("real numbers", str(tensor.dtype), name)
    if tensor.dtype.kind != "f":
        return
    numbers = tensor.reshape(-1)
    for start in range(0, numbers.size, _CHUNK):
        part = numbers[start : start + _CHUNK]
        if not np.isfinite(part).all():
            wrong = part[~np.isfinite(part)][0]
            raise _error(
                "finite numbers", str(wrong), name, "The file is damaged, or its training diverged: deliver the model again."
            )


def check_shared(layers: Mapping[str, LayerRecord]) -> None:
    """Check that layers with shared tensors have equal records, so that the shared weight is decoded once.

    Raises:
        ArtifactError: two records differ.
    """
    owners: dict[str, LayerRecord] = {}
    for layer in layers.values():
        owner = owners.setdefault(layer.stored_as, layer)
        if replace(layer, name=owner.name, kind=owner.kind, input=owner.input) != owner:
            where = f"{CONFIG}: {layer.name} and {owner.name}"
            raise ArtifactError("equal records of one weight", given="records that differ", where=where, fix=DAMAGED)


def _highest_code(packed: Array, levels: int, layout: Layout) -> int:
    """Upper bound of the codes, below `levels` if and only if the highest code is."""
    bits = bits_for(levels)
    if not packed.size or (layout == "bits" and levels == 1 << bits):
        return 0
    if layout == "trits":
        return levels if packed.max() > _MOST_TRITS else 0
    if layout == "bytes" or bits == 8:
        return int(packed.max())
    rows = max(1, _CHUNK // packed.shape[1])
    return max(_highest_bits(packed[start : start + rows], bits) for start in range(0, len(packed), rows))


def _highest_bits(packed: Array, bits: int) -> int:
    """Highest code of `bits` bits: several per byte, or eight per `bits` bytes."""
    if 8 % bits == 0:
        return max(int((packed & ((1 << bits) - 1) << place).max()) >> place for place in range(0, 8, bits))
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % bits)))
    columns = padded.reshape(-1, bits).astype(np.uint64)
    groups = sum(columns[:, byte] << np.uint64(8 * byte) for byte in range(bits))
    ones = np.uint64((1 << bits) - 1)
    return max(int((groups >> np.uint64(bits * place) & ones).max()) for place in range(8))


def _error(wanted: str, given: str, name: str, fix: str = DAMAGED) -> ArtifactError:
    return ArtifactError(wanted, given=given, where=f"{WEIGHTS}: {name}", fix=fix)
