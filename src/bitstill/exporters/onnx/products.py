"""Linear layers and convolutions.

Layers with quantized inputs and integer levels times a scale per row are multiplied as integers, with exactly the codes of
training; all others as floats, with exactly the effective weights of training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitstill.artifact.format import LayerRecord
from bitstill.artifact.reader import Array
from bitstill.exporters.onnx import block_matmul, initializers
from bitstill.exporters.onnx import input_codes as inputs
from bitstill.exporters.onnx.lowering import Lowering
from bitstill.program import operations as ops

LINEAR_RANK, CONVOLUTION_RANK = 2, 4
"""Number of dimensions of their inputs."""


@dataclass(frozen=True)
class _Operator:
    """An integer product: its name, the rank of its input, and its attributes."""

    name: str
    rank: int
    settings: dict[str, Any] = field(default_factory=dict)


def linear(low: Lowering, operation: ops.Linear, value: str) -> str:
    """(rows, inputs) -> (rows, outputs)."""
    layer, record = operation.layer, low.archive.layers.get(operation.layer)
    if low.products == "blocks" and record is not None and block_matmul.block_of(record) is not None:
        low.arithmetic[layer] = "packed blocks"
        return block_matmul.product(low.graph, low.archive, record, value, *low.bias(layer))
    if by_integers(low, layer) and low.products != "qdq":
        return low.split[layer] if layer in low.split else _side_by_side(low, layer, value)
    return low.graph.node("Gemm", *_float_operands(low, layer, value, LINEAR_RANK), *low.bias(layer), transB=1)


def convolution(low: Lowering, operation: ops.Convolution, value: str) -> str:
    """(samples, channels, height, width), with zeros around the image."""
    layer = operation.layer
    settings = {"strides": [operation.stride] * 2, "pads": [operation.padding] * 4}
    if by_integers(low, layer) and low.products != "qdq":
        return _integer_product(low, [layer], value, _Operator("ConvInteger", CONVOLUTION_RANK, settings))
    operands = _float_operands(low, layer, value, CONVOLUTION_RANK)
    return low.graph.node("Conv", *operands, *low.bias(layer), **settings)


def by_integers(low: Lowering, layer: str) -> bool:
    """Whether codes of the input and levels of the weights are multiplied, rather than the floats they stand for."""
    record, rule = low.archive.layers.get(layer), low.rule(layer)
    if low.unpacked or record is None or rule is None or not initializers.integer_planes(record):
        return False
    # Scales for each row have no place in a pair of operators, nor have offsets of weights.
    if low.products == "qdq" and (rule["per"] != "tensor" or any(plane.offset for plane in record.planes)):
        return False
    # A zero point for each row, or an input that is shifted, is more than integer products understand.
    if not rule["symmetric"] and (rule["per"] != "tensor" or rule["range"] == "step"):
        return False
    # Offsets are added with sums of codes, which near the edge of an image are not those of whole windows.
    return record.kind == "Linear" or not any(plane.offset for plane in record.planes)


def _side_by_side(low: Lowering, layer: str, value: str) -> str:
    """Layers that read the same codes, as query, key and value do, are multiplied at once and split afterwards."""
    names = [name for name in low.siblings(layer) if _combine(low, name, layer)]
    result = _integer_product(low, names, value, _Operator("MatMulInteger", LINEAR_RANK))
    if len(names) > 1:
        widths = low.graph.constant([low.shape(name)[0] for name in names])
        parts = low.graph.nodes("Split", result, widths, outputs=len(names), axis=1)
        low.split |= dict(zip(names, parts, strict=True))
        return low.split[layer]
    return result


def _combine(low: Lowering, one: str, other: str) -> bool:
    """Whether two layers that read one value can be multiplied at once."""
    if one == other:
        return True
    first, second, rule = low.archive.layers.get(one), low.archive.layers[other], low.rule(other)
    if first is None or not by_integers(low, one) or low.rule(one) != rule or rule is None or rule["range"] != "dynamic":
        return False
    same = [plane.offset for plane in first.planes] == [plane.offset for plane in second.planes]
    zeros = ((initializers.level_zero(first, n), initializers.level_zero(second, n)) for n in range(len(first.planes)))
    return same and all(zero == other_zero for zero, other_zero in zeros)


def _float_operands(low: Lowering, layer: str, value: str, rank: int) -> tuple[str, str]:
    """Input and weight of a product of floats: as pairs of operators where that is asked for and fits."""
    if low.products == "qdq" and by_integers(low, layer):
        return _dequantized(low, layer, value, rank)
    low.arithmetic[layer] = "float"
    codes = low.codes(layer, value, rank)
    return (value if codes is None else inputs.dequantized(low.graph, codes, rank)), low.float_weight(layer)


def _dequantized(low: Lowering, layer: str, value: str, rank: int) -> tuple[str, str]:
    """Input and weight, each quantized to integers and back again."""
    graph, record, codes = low.graph, low.archive.layers[layer], low.codes(layer, value, rank)
    assert codes is not None
    low.arithmetic[layer] = "dequantized"
    total = ""
    for plane in range(len(record.planes)):
        zero = initializers.level_zero(record, plane)
        levels = initializers.integer_weight(graph, low.archive, record, plane)
        scale = graph.cast(graph.constant(initializers.row_numbers(low.archive, record, "scale", plane)), "float32")
        points = () if zero is None else (graph.constant(np.full(record.shape[0], zero, np.uint8)),)
        weight = graph.node("DequantizeLinear", levels, scale, *points, axis=0)
        total = weight if not total else graph.node("Add", total, weight)
    plain = graph.once("DequantizeLinear", codes.codes, codes.scale, *filter(None, (codes.zero_point,)))
    return (graph.node("Add", plain, codes.shift) if codes.shift else plain), total


def _integer_product(low: Lowering, layers: list[str], value: str, operator: _Operator) -> str:
    """Sum over planes of codes x levels, times both scales; what offsets of the weights add is the sum of the codes.

    Runtimes fuse a product, its cast, and a multiplication by a scalar times a scale for each channel into one operation. Where
    inputs have a scale for each row, that scalar is 1, and rows are scaled afterwards.
    """
    graph, records = low.graph, [low.archive.layers[layer] for layer in layers]
    low.arithmetic |= dict.fromkeys(layers, "integer")
    codes = low.codes(layers[0], value, operator.rank)
    assert codes is not None
    total, scalar = "", _one(low, value) if codes.by_row else codes.scale
    for plane, about in enumerate(records[0].planes):
        product = graph.cast(_plane_product(low, records, plane, codes, operator), "float32")
        scale = graph.node("Mul", scalar, _by_channel(low, records, "scale", plane, operator.rank))
        product = graph.node("Mul", product, scale)
        if about.offset:
            offset = graph.node("Mul", scalar, _by_channel(low, records, "offset", plane, operator.rank))
            product = graph.node("Add", product, graph.node("Mul", _sums(low, codes), offset))
        total = product if not total else graph.node("Add", total, product)
    total = graph.node("Mul", total, inputs.column(graph, codes, operator.rank)) if codes.by_row else total
    return _with_biases(low, total, layers, operator.rank)


def _plane_product(low: Lowering, records: list[LayerRecord], plane: int, codes: inputs.Codes, operator: _Operator) -> str:
    graph = low.graph
    levels = [initializers.integer_weight(graph, low.archive, record, plane) for record in records]
    weight = levels[0] if len(levels) == 1 else graph.node("Concat", *levels, axis=0)
    weight = graph.node("Transpose", weight, perm=[1, 0]) if operator.name == "MatMulInteger" else weight
    zero, points = initializers.level_zero(records[0], plane), [codes.zero_point]
    if zero:
        points = [codes.zero_point or graph.constant(0, np.uint8), graph.constant(zero, np.uint8)]
    return graph.node(operator.name, codes.codes, weight, *filter(None, points), **operator.settings)


def _one(low: Lowering, value: str) -> str:
    """1 as a value that is not known beforehand: a constant would be multiplied into the scales, and nothing be fused."""
    entries = low.graph.cast(low.graph.once("Size", low.rows_of(LINEAR_RANK, value)), "float32")
    return low.graph.once("Div", entries, entries)


def _by_channel(low: Lowering, records: list[LayerRecord], kind: str, plane: int, rank: int) -> str:
    numbers = [initializers.row_numbers(low.archive, record, kind, plane) for record in records]
    return _channels(low, np.concatenate(numbers), rank)


def _channels(low: Lowering, numbers: Array, rank: int) -> str:
    """One number for each output channel, which is the second dimension of a value of that rank."""
    return low.graph.cast(low.graph.constant(numbers.reshape(-1, *[1] * (rank - 2))), "float32")


def _with_biases(low: Lowering, value: str, layers: list[str], rank: int) -> str:
    biases = [low.archive.tensors.get(f"{layer}.bias") for layer in layers]
    if all(bias is None for bias in biases):
        return value
    pairs = zip(biases, layers, strict=True)
    whole = [np.zeros(low.shape(layer)[0], np.float16) if bias is None else bias for bias, layer in pairs]
    return low.graph.node("Add", value, _channels(low, np.concatenate(whole), rank))


def _sums(low: Lowering, codes: inputs.Codes) -> str:
    """Sum of each row of codes minus their zero point, float32 (rows, 1)."""
    name = f"sums of {codes.codes}"
    if name not in low.shared:
        plain = low.graph.cast(codes.codes, "float32")
        if codes.zero_point:
            plain = low.graph.node("Sub", plain, low.graph.cast(codes.zero_point, "float32"))
        low.shared[name] = low.graph.node("ReduceSum", plain, low.graph.constant([1]))
    return low.shared[name]
