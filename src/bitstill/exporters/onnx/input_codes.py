"""Quantization of a layer's input by exactly its trained rule, as ONNX nodes.

`quant.inputs` defines the rules. Codes of 8 bits or fewer are bytes, so that integers can be multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitstill.artifact.reader import Archive
from bitstill.exporters.onnx.graph import MIDDLE, Graph

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Codes:
    """A quantized value: (codes - zero_point) * scale + shift.

    Args:
        codes: uint8, since runtimes are many times slower with signed ones; otherwise float32 without a zero point.
        scale: float32, shape () or one per entry of the first dimension, (entries,).
        zero_point: uint8 (); "" is zero.
        shift: float32 (); "" is zero.
        by_row: whether there is a scale per entry of the first dimension.
    """

    codes: str
    scale: str
    zero_point: str = ""
    shift: str = ""
    by_row: bool = False


def quantized(
    graph: Graph,
    archive: Archive,
    transform: str,
    value: str,
    rule: Mapping[str, Any],
    rank: int,
    rows: str = "",
    *,
    plain: bool = False,
) -> Codes:
    """A value as codes.

    Args:
        transform: prefix of the names of learned bounds and steps.
        value: float32 of `rank` dimensions, the first over tokens or samples.
        rule: the fields of `QuantizeInput`.
        rank: see above.
        rows: another value with the same first dimension, common to all such values; "" is none.
        plain: compute codes as floats, if they are not multiplied as integers.
    """
    bits, symmetric, learned = rule["bits"], rule["symmetric"], archive.learned(transform, rule)
    if rule["range"] == "step":
        return _step(graph, learned["step"], value, bits, symmetric)
    if rule["range"] == "clip":
        low, high = (graph.constant(np.array(learned[name])) for name in ("low", "high"))
        value = graph.node("Min", graph.node("Max", value, low), high)
    # Inside an encoder a token is an entry of the first dimension, and elsewhere a sample is; callers refuse the rest.
    by_row = rule["per"] != "tensor"
    if symmetric:
        return _symmetric(graph, value, 2 ** (bits - 1) - 1, by_row, rank, rows, plain)
    if bits == 8 and not by_row and not plain:
        codes, scale, zero = graph.nodes("DynamicQuantizeLinear", value, outputs=3)
        return Codes(codes, scale, zero)
    return _asymmetric(graph, value, 2**bits - 1, by_row, rank)


def dequantized(graph: Graph, quantized_value: Codes, rank: int) -> str:
    """Dequantized float value."""
    value = graph.cast(quantized_value.codes, "float32")
    if quantized_value.zero_point:
        value = graph.node("Sub", value, graph.cast(quantized_value.zero_point, "float32"))
    value = graph.node("Mul", value, column(graph, quantized_value, rank))
    return graph.node("Add", value, quantized_value.shift) if quantized_value.shift else value


def column(graph: Graph, quantized_value: Codes, rank: int) -> str:
    """The scale, in a shape that broadcasts over a value of that many dimensions."""
    if not quantized_value.by_row:
        return quantized_value.scale
    return graph.node("Reshape", quantized_value.scale, graph.constant([-1, *[1] * (rank - 1)]))


def _symmetric(graph: Graph, value: str, top: int, by_row: bool, rank: int, rows: str, plain: bool) -> Codes:
    largest = _over(graph, "ReduceMax", graph.node("Abs", value), by_row, rank)
    scale = _usable(graph, graph.node("Div", largest, graph.constant(float(top))))
    if plain:
        quantized_value = Codes("", scale, by_row=by_row)
        return replace(
            quantized_value, codes=graph.node("Round", graph.node("Div", value, column(graph, quantized_value, rank)))
        )
    middle = graph.constant(MIDDLE, np.uint8)
    points = middle if not by_row else graph.once("Expand", middle, graph.once("Shape", rows or scale, end=1))
    return Codes(graph.node("QuantizeLinear", value, scale, points, axis=0), scale, middle, by_row=by_row)


def _asymmetric(graph: Graph, value: str, top: int, by_row: bool, rank: int) -> Codes:
    low = graph.node("Min", _over(graph, "ReduceMin", value, by_row, rank), graph.constant(0.0))
    high = graph.node("Max", _over(graph, "ReduceMax", value, by_row, rank), graph.constant(0.0))
    scale = _usable(graph, graph.node("Div", graph.node("Sub", high, low), graph.constant(float(top))))
    quantized_value = Codes("", scale, by_row=by_row)
    zero = graph.node("Round", graph.node("Div", graph.node("Neg", low), scale))
    # Codes around zero stay signed: integer products do not support a zero point per row.
    rounded = graph.node("Round", graph.node("Div", value, column(graph, quantized_value, rank)))
    zero = column(graph, Codes("", zero, by_row=by_row), rank)
    clamped = graph.node(
        "Min", graph.node("Max", graph.node("Add", rounded, zero), graph.constant(0.0)), graph.constant(float(top))
    )
    if by_row:
        # (q - z) may need 9 bits: as floats, for products in float.
        return Codes(graph.node("Sub", clamped, zero), scale, by_row=True)
    return Codes(graph.cast(clamped, "uint8"), scale, graph.cast(zero, "uint8"))


def _step(graph: Graph, step: np.float32, value: str, bits: int, symmetric: bool) -> Codes:
    scale = graph.constant(np.array(step))
    if symmetric:
        low, high, shift = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, ""
    else:
        low, high, shift = 0, 2**bits - 1, graph.node("ReduceMin", value, keepdims=0)
        value = graph.node("Sub", value, shift)
    scaled = graph.node("Div", value, scale)
    clamped = graph.node("Min", graph.node("Max", scaled, graph.constant(float(low))), graph.constant(float(high)))
    rounded = graph.node("Round", clamped)
    if not symmetric:
        return Codes(graph.cast(rounded, "uint8"), scale, shift=shift)
    moved = graph.node("Add", rounded, graph.constant(float(MIDDLE)))
    return Codes(graph.cast(moved, "uint8"), scale, graph.constant(MIDDLE, np.uint8))


def _over(graph: Graph, operator: str, value: str, by_row: bool, rank: int) -> str:
    if not by_row:
        return graph.node(operator, value, keepdims=0)
    return graph.node(operator, value, graph.constant(list(range(1, rank))), keepdims=0)


def _usable(graph: Graph, scale: str) -> str:
    """The scale, or the smallest number that can divide: where all is zero, codes and values are zero either way."""
    return graph.node("Max", scale, graph.constant(TINY))
