"""Operations on texts: rows of tables, attention, the tokens of each text. Values have a row for each token of the batch."""

from __future__ import annotations

import math

import numpy as np

from bitstill.exporters.onnx import initializers
from bitstill.exporters.onnx import input_codes as inputs
from bitstill.exporters.onnx.lowering import Lowering
from bitstill.program import operations as ops
from bitstill.program.operations import Transform
from bitstill.program.scopes import check_scope

ATTENTION_OPSET = 23
"""First operator set with attention as one operator."""


def embedding(low: Lowering, operation: ops.Embedding, ids: str) -> str:
    """Ids (texts, length) -> (tokens, width)."""
    return _rows(low, operation.layer, low.graph.node("Reshape", ids, low.graph.constant([-1])))


def _rows(low: Lowering, layer: str, ids: str) -> str:
    graph, record = low.graph, low.archive.layers.get(layer)
    if record is None:
        low.arithmetic[layer] = "float"
        rows = graph.node("Gather", graph.constant(low.archive.tensors[f"{layer}.weight"]), ids)
        return graph.cast(rows, "float32")
    if initializers.rows_stand_alone(record) and not low.unpacked:
        low.arithmetic[layer] = "packed rows"
        return initializers.gathered_rows(graph, low.archive, record, ids)
    low.arithmetic[layer] = "unpacked table"
    return graph.node("Gather", low.float_weight(layer), ids)


def positions(low: Lowering, operation: ops.Positions, ids: str) -> str:
    """Rows of a table by position in the text: ids (texts, length) -> (tokens, width)."""
    if operation.padding is None:
        return _all_positions(low, operation, ids)
    graph = low.graph
    real = graph.cast(graph.node("Not", graph.node("Equal", ids, graph.constant(operation.padding))), "int64")
    counted = graph.node("Mul", graph.node("CumSum", real, graph.constant(1)), real)
    places = graph.node("Add", counted, graph.constant(operation.first - 1))
    return _rows(low, operation.layer, graph.node("Reshape", places, graph.constant([-1])))


def _all_positions(low: Lowering, operation: ops.Positions, ids: str) -> str:
    """The first rows of the table, for every text."""
    graph = low.graph
    length = graph.node("Gather", graph.node("Shape", ids), graph.constant(1))
    places = graph.node("Range", graph.constant(0), length, graph.constant(1))
    rows = _rows(low, operation.layer, graph.node("Add", places, graph.constant(operation.first)))
    rows = graph.node("Unsqueeze", rows, graph.constant([0]))
    width = graph.node("Shape", rows, start=2)
    whole = graph.node("Concat", graph.node("Shape", ids), width, axis=0)
    spread = graph.node("Expand", rows, whole)
    return graph.node("Reshape", spread, graph.node("Concat", graph.constant([-1]), width, axis=0))


def quantize(low: Lowering, operation: ops.Quantize, value: str) -> str:
    """Quantized and dequantized value."""
    return _requantized(low, operation.transform, value, low.graph.constant([operation.width]))


def _requantized(low: Lowering, transform: Transform, value: str, width: str) -> str:
    """Quantized and dequantized value with rows of that width."""
    graph, rule = low.graph, transform.rule
    check_scope(rule["per"], transform.name, tokens=low.tokens, lines=False)
    rows = graph.node("Reshape", value, graph.node("Concat", graph.constant([-1]), width, axis=0))
    codes = inputs.quantized(graph, low.archive, transform.name, rows, rule, 2, plain=True)
    return graph.node("Reshape", inputs.dequantized(graph, codes, 2), graph.node("Shape", value))


def attention(low: Lowering, operation: ops.Attention, query: str, key: str, value: str) -> str:
    """softmax(q k^T / sqrt(head width)) v, for each text and head."""
    if low.graph.opset >= ATTENTION_OPSET and operation.probabilities is None:
        return _attention_operator(low, operation, (query, key, value))
    graph, heads, width = low.graph, operation.heads, operation.head_width
    texts = graph.node("Concat", _shape_of_ids(low), graph.constant([heads, width]), axis=0)

    def by_head(of: str, order: list[int]) -> str:
        return graph.node("Transpose", graph.node("Reshape", of, texts), perm=order)

    scaled = graph.node("Mul", by_head(query, [0, 2, 1, 3]), graph.constant(1.0 / math.sqrt(width)))
    scores = graph.node("MatMul", scaled, by_head(key, [0, 2, 3, 1]))
    weights = graph.node("Softmax", graph.node("Add", scores, _mask(low)), axis=-1)
    if operation.probabilities is not None:
        weights = _requantized(low, operation.probabilities, weights, graph.node("Shape", weights, start=3))
    mixed = graph.node("Transpose", graph.node("MatMul", weights, by_head(value, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    return graph.node("Reshape", mixed, graph.constant([-1, heads * width]))


def _attention_operator(low: Lowering, operation: ops.Attention, operands: tuple[str, ...]) -> str:
    graph, heads, width = low.graph, operation.heads, operation.head_width
    whole = graph.node("Concat", _shape_of_ids(low), graph.constant([heads * width]), axis=0)
    values = [graph.node("Reshape", operand, whole) for operand in operands]
    counts = {"q_num_heads": heads, "kv_num_heads": heads, "scale": 1.0 / math.sqrt(width)}
    mixed = graph.node("Attention", *values, _mask_by_query(low), **counts)
    return graph.node("Reshape", mixed, graph.constant([-1, heads * width]))


def _shape_of_ids(low: Lowering) -> str:
    return low.graph.once("Shape", "input_ids")


def _mask(low: Lowering) -> str:
    """Additive mask: 0 for tokens and the lowest number for padding, (texts, 1, 1, length)."""
    if "mask" not in low.shared:
        graph = low.graph
        padding = graph.node("Sub", graph.constant(1.0), graph.cast("attention_mask", "float32"))
        lowest = graph.node("Mul", padding, graph.constant(np.array(np.finfo(np.float32).min)))
        low.shared["mask"] = graph.node("Unsqueeze", lowest, graph.constant([1, 2]))
    return low.shared["mask"]


def _mask_by_query(low: Lowering) -> str:
    """The same for each query, (texts, 1, length, length)."""
    if "mask by query" not in low.shared:
        graph, ids = low.graph, _shape_of_ids(low)
        texts, length = (graph.node("Slice", ids, graph.constant([n]), graph.constant([n + 1])) for n in (0, 1))
        whole = graph.node("Concat", texts, graph.constant([1]), length, length, axis=0)
        low.shared["mask by query"] = graph.node("Expand", _mask(low), whole)
    return low.shared["mask by query"]


def first_token(low: Lowering, _operation: ops.FirstToken, value: str) -> str:
    """(tokens, width) -> (texts, width)."""
    texts = by_text(low, ops.ByText(), value)
    low.first_tokens()
    return low.graph.node("Gather", texts, low.graph.constant(0), axis=1)


def by_text(low: Lowering, _operation: ops.ByText, value: str) -> str:
    """(tokens, width) -> (texts, length, width)."""
    width = low.graph.node("Shape", value, start=1)
    return low.graph.node("Reshape", value, low.graph.node("Concat", _shape_of_ids(low), width, axis=0))
