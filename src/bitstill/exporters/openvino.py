"""A program as OpenVINO's own files, with weights as constants of 1, 2, 4 or 8 bits. The only file that imports openvino."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.format import LayerRecord
from bitstill.artifact.reader import Archive
from bitstill.errors import need_package
from bitstill.exporters.onnx.lower import lower
from bitstill.program.levels import kept_weights, packed_bits, whole_levels
from bitstill.program.operations import Program

Array = npt.NDArray[Any]
_TYPES = ((1, "u1"), (2, "u2"), (4, "u4"), (8, "u8"))
"""Types of constants by bits."""


def write_openvino(program: Program, archive: Archive, path: Path) -> dict[str, str]:
    """Write `path`.xml and `path`.bin.

    Args:
        program: program of the artifact.
        archive: the artifact.
        path: path without a suffix.

    Returns:
        The type of each layer's constant; "f32" for flat buckets.

    Raises:
        ArtifactError: as for `lower`.
        MissingPackageError: without openvino and onnx.
    """
    openvino = _package()
    # Not convert_model, which would multiply batch norms into the weights.
    model = openvino.Core().read_model(BytesIO(lower(program, archive, products="unpacked").data))
    constants = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    types = {}
    for name, layer in archive.layers.items():
        if layer.grid.rows == layer.shape[0] or layer.grid.groups == 1:
            weight, types[name] = _packed(openvino, archive, layer)
            openvino.utils.replace_node(constants[name], weight)
        else:  # OpenVINO does not support groups that cross rows
            types[name] = "f32"
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)
    return types


def open_model(path: Path, threads: int = 0, precision: str = "f32") -> Callable[[Mapping[str, Array]], Array]:
    """Load a model as a function from inputs by name to the first output; unknown inputs are ignored.

    Args:
        path: the .xml file.
        threads: number of threads; 0 uses all cores.
        precision: "f32" as in training; by default OpenVINO computes in "bf16" on some processors.
    """
    openvino = _package()
    settings = {"INFERENCE_PRECISION_HINT": precision, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names = [given.get_any_name() for given in compiled.inputs]

    def run(values: Mapping[str, Array]) -> Array:
        result: Array = compiled({name: values[name] for name in names})[0]
        return result

    return run


def _package() -> Any:
    return need_package("openvino", extra="all", purpose="OpenVINO files")


def _packed(openvino: Any, archive: Archive, layer: LayerRecord) -> tuple[Any, str]:
    """A layer's weight as operations on low-bit constants, and their type."""
    grid, ops, total, types = layer.grid, openvino.opset13, None, []
    for index in range(len(layer.planes)):
        value, kind = _plane(openvino, archive, layer, index)
        total = value if total is None else ops.add(total, value)
        types.append(kind)
    if grid.padding:
        total = ops.reshape(total, ops.constant(np.array([grid.rows, grid.groups * grid.size])), False)
        ends = [ops.constant(np.array([number])) for number in (0, grid.length, 1, 1)]
        total = ops.slice(total, *ends)
    weight = ops.reshape(total, ops.constant(np.array(layer.shape)), False)
    mask = kept_weights(archive, layer)
    if mask is not None and not _zero_is_a_level(layer):
        bits = _constant(openvino, mask.astype(np.uint8).reshape(layer.shape), "u1")
        weight = ops.multiply(weight, ops.convert(bits, np.float32))
    return weight, " + ".join(types)


def _plane(openvino: Any, archive: Archive, layer: LayerRecord, index: int) -> tuple[Any, str]:
    """One plane (rows, groups, size), or (rows, 1, row length) under one scale, and the type of its codes.

    Integers minus a zero point, times a scale per group, the form that OpenVINO maps to fast operations.
    """
    plane, ops = layer.planes[index], openvino.opset13
    scale = archive.tensors[layer.tensor("scale", index)].astype(np.float32)[..., None]
    offset = archive.tensors[layer.tensor("offset", index)].astype(np.float32)[..., None] if plane.offset else None
    if plane.first is None:
        constant, kind = _grouped(openvino, archive.codes(layer, index), layer)
        points, places = ops.constant(archive.levels(layer, index)), ops.convert(constant, np.int32)
        value = ops.multiply(ops.gather(points, places, ops.constant(0)), ops.constant(scale))
        return value if offset is None else ops.add(value, ops.constant(offset)), kind
    # If zero is no level, masked weights are multiplied by zero later, and may have any level here.
    levels = whole_levels(archive, layer if _zero_is_a_level(layer) else replace(layer, mask=False), index)
    low = int(levels.min())
    step = plane.step if not np.any((levels - low) % plane.step) else 1
    constant, kind = _grouped(openvino, ((levels - low) // step).astype(np.uint8), layer)
    zero: Array = np.full((1, 1, 1), -low / step, np.float32)
    if offset is not None:
        zero = zero - offset / np.where(scale, scale, 1) / np.float32(step)
    value = ops.multiply(ops.subtract(ops.convert(constant, np.float32), ops.constant(zero)), ops.constant(scale * step))
    return value, kind


def _zero_is_a_level(layer: LayerRecord) -> bool:
    """Whether a level represents the zeros of a mask."""
    return all(plane.first is not None and not plane.offset for plane in layer.planes) and len(layer.planes) == 1


def _grouped(openvino: Any, codes: Array, layer: LayerRecord) -> tuple[Any, str]:
    """Codes (rows, row length) as a constant (rows, groups, size), and its type."""
    grid = layer.grid
    rows = layer.shape[0] if grid.groups == 1 else grid.rows
    kind = next(kind for bits, kind in _TYPES if int(codes.max()) < 2**bits)
    # OpenVINO 2026.4 multiplies wrongly where rows of 2 or 4 bits end within a byte.
    kind = "u8" if layer.shape[-1] % 2 and kind in ("u2", "u4") else kind
    padded = np.pad(codes, ((0, 0), (0, grid.padding)))
    return _constant(openvino, padded.reshape(rows, grid.groups, -1), kind), kind


def _constant(openvino: Any, codes: Array, kind: str) -> Any:
    """Codes as a low-bit constant, packed from the low bits of a byte up; single bits from the highest down."""
    bits = next(bits for bits, name in _TYPES if name == kind)
    packed = np.packbits(codes, bitorder="big") if bits == 1 else packed_bits(codes.reshape(1, -1), bits)[0]
    tensor = openvino.Tensor(packed, openvino.Shape(codes.shape), getattr(openvino.Type, kind))
    return openvino.op.Constant(tensor, False)
