"""A program as an ONNX file: one function for each operation.

Layers whose inputs are quantized and whose weights are whole numbers times a scale for each row are multiplied as integers,
with exactly the codes that training saw; all others as floats, with exactly the weights that training saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bitstill.artifact.format import LayerRecord
from bitstill.artifact.reader import Archive, Array
from bitstill.exporters.onnx import block_matmul as blocks
from bitstill.exporters.onnx import initializers as weights
from bitstill.exporters.onnx import input_codes as inputs
from bitstill.exporters.onnx.graph import OPSET, Graph
from bitstill.program import operations as ops
from bitstill.program.operations import Program, Step, Transform
from bitstill.program.scopes import check_scope

PER_TENSOR: Mapping[str, Any] = {"bits": 8, "symmetric": False, "per": "tensor", "range": "dynamic"}
"""The rule of ONNX `DynamicQuantizeLinear`."""
ATTENTION_OPSET = 23
"""From here on attention is one operator."""
Arithmetic = Literal["integer", "float", "packed rows", "unpacked table", "packed blocks", "dequantized"]


@dataclass(frozen=True)
class Lowered:
    """A finished file.

    Args:
        data: its bytes.
        arithmetic: how each layer is computed.
    """

    data: bytes
    arithmetic: dict[str, Arithmetic]


def lower(
    program: Program,
    archive: Archive,
    *,
    per_tensor: bool = False,
    opset: int = OPSET,
    unpacked: bool = False,
    in_blocks: bool = False,
    qdq: bool = False,
) -> Lowered:
    """The ONNX file of a program with the weights of an artifact.

    Args:
        program: of this very artifact.
        archive: it.
        per_tensor: quantize inputs with one range per tensor where training had one per token or sample: not what was trained,
            but what runtimes have one fused operation for.
        opset: the operator set to say it in.
        in_blocks: linear layers by ONNX Runtime's own operator, which quantizes inputs in its own way, where they fit.
        qdq: integer weights and inputs as pairs of quantizing and dequantizing operators around float products, which
            compilers for other hardware look for, rather than as integer products.
        unpacked: weights as float constants under the layers' names, for whoever packs them otherwise.

    Raises:
        SpecError: one that is too old, or newer than the onnx package.
        ArtifactError: inputs of a layer are quantized over what has no place in a program.
        MissingPackageError: without onnx.
    """
    return _Lowering(program, archive, Graph(opset), _How(per_tensor, in_blocks, qdq, unpacked)).run()


@dataclass(frozen=True)
class _How:
    """What `lower` was asked for."""

    per_tensor: bool
    in_blocks: bool
    qdq: bool
    unpacked: bool


class _Lowering:
    def __init__(self, program: Program, archive: Archive, graph: Graph, how: _How) -> None:
        self.program, self.archive, self.graph, self.how = program, archive, graph, how
        self.changed = PER_TENSOR if how.per_tensor else {}
        self.values = {given.name: given.name for given in program.inputs}
        self.ranks = {given.name: len(given.shape) for given in program.inputs}
        self.arithmetic: dict[str, Arithmetic] = {}
        self._shared: dict[tuple[str, ...], inputs.Codes] = {}
        self._per_graph: dict[str, str] = {}
        self._first: dict[int, str] = {}
        self._tokens = any(given.name == "input_ids" for given in program.inputs)
        self._together: dict[str, str] = {}
        self._make: dict[type[Any], Callable[..., str]] = {
            ops.Embedding: self._embedding, ops.Positions: self._positions, ops.Linear: self._linear,
            ops.LayerNorm: self._layer_norm, ops.Activation: self._activation, ops.Add: self._add,
            ops.Quantize: self._quantize, ops.Attention: self._attention,
            ops.FirstToken: self._first_token, ops.ByText: self._by_text,
            ops.Convolution: self._convolution, ops.BatchNorm: self._batch_norm, ops.MaxPool: self._max_pool,
            ops.AveragePool: self._average_pool, ops.Mean: self._mean, ops.Flatten: self._flatten,
        }  # fmt: skip
        readers: dict[str, list[str]] = {}
        for step in program.steps:
            if isinstance(step.operation, ops.Linear):
                readers.setdefault(step.inputs[0], []).append(step.operation.layer)
        self._beside = {layer: layers for layers in readers.values() for layer in layers}

    def run(self) -> Lowered:
        """Write every step, and what comes out."""
        for step in self.program.steps:
            self.values[step.output] = self._lowered(step)
            self.ranks[step.output] = self._rank(step)
        last = self.program.steps[-1].output
        self.graph.named(self.values[last], self.program.result)
        given = [(each.name, each.dtype, each.shape) for each in self.program.inputs]
        data = self.graph.model(given, (self.program.result, "float32", self._shape_of_result()), "bitstill")
        return Lowered(data, self.arithmetic)

    def _shape_of_result(self) -> tuple[int | str, ...]:
        last = self.program.steps[-1].operation
        if isinstance(last, ops.ByText):
            before = self.program.steps[-2].operation
            assert isinstance(before, ops.LayerNorm)
            return ("batch", "length", self._shape(before.layer)[0])
        assert isinstance(last, ops.Linear)
        return ("batch", self._shape(last.layer)[0])

    def _rank(self, step: Step) -> int:
        match step.operation:
            case ops.Embedding() | ops.Positions() | ops.Mean() | ops.Flatten():
                return 2
        return self.ranks[step.inputs[0]]

    def _lowered(self, step: Step) -> str:
        return self._make[type(step.operation)](step.operation, *(self.values[name] for name in step.inputs))

    # What a layer has ---------------------------------------------------------------------------------------------------

    def _leftover(self, name: str) -> str:
        """A tensor that was not compressed, in float32."""
        return self.graph.cast(self.graph.constant(self.archive.tensors[name]), "float32")

    def _shape(self, layer: str) -> tuple[int, ...]:
        record = self.archive.layers.get(layer)
        return record.shape if record is not None else self.archive.tensors[f"{layer}.weight"].shape

    def _float_weight(self, layer: str) -> str:
        record = self.archive.layers.get(layer)
        if record is None:
            return self._leftover(f"{layer}.weight")
        if self.how.unpacked:
            return self.graph.named_constant(layer, self.archive.weight(layer))
        return weights.float_weight(self.graph, self.archive, record)

    def _rule(self, layer: str) -> Mapping[str, Any] | None:
        """How the layer quantizes its input: as it was trained, unless it shall be otherwise."""
        record = self.archive.layers.get(layer)
        rule = None if record is None else record.input
        changes = rule is not None and rule["range"] == "dynamic" and rule["bits"] == 8 and rule["per"] != "tensor"
        return self.changed if changes and self.changed else rule

    def _codes(self, layer: str, value: str, rank: int) -> inputs.Codes | None:
        """The layer's quantized input, made once where several layers quantize one value in the same way."""
        rule = self._rule(layer)
        if rule is None:
            return None
        own = layer if rule["range"] != "dynamic" else ""
        key = (value, own, *(f"{name}={rule[name]}" for name in sorted(rule)))
        if key not in self._shared:
            otherwise = "export it with activations per-tensor"
            check_scope(rule["per"], layer, tokens=self._tokens, lines=rank > 2, otherwise=otherwise)
            # Every value of that rank before the first tokens are taken out has a row for each token of the batch.
            rows = self._first.setdefault(rank, value)
            self._shared[key] = inputs.quantized(
                self.graph, self.archive, f"{layer}.input_transform", value, rule, rank, rows, plain=self.how.unpacked
            )
        return self._shared[key]

    def _float_input(self, layer: str, value: str, rank: int) -> str:
        codes = self._codes(layer, value, rank)
        return value if codes is None else inputs.dequantized(self.graph, codes, rank)

    # Layers ------------------------------------------------------------------------------------------------------------

    def _linear(self, operation: ops.Linear, value: str) -> str:
        graph, layer, record = self.graph, operation.layer, self.archive.layers.get(operation.layer)
        if self.how.in_blocks and record is not None and blocks.block_of(record) is not None:
            self.arithmetic[layer] = "packed blocks"
            return blocks.product(graph, self.archive, record, value, *self._bias(layer))
        if self._by_integers(layer) and not self.how.qdq:
            return self._together[layer] if layer in self._together else self._side_by_side(layer, value)
        return graph.node("Gemm", *self._in_float(layer, value, 2), *self._bias(layer), transB=1)

    def _side_by_side(self, layer: str, value: str) -> str:
        """Layers that read the same codes, as query, key and value do, are multiplied at once and cut apart afterwards."""
        names = [name for name in self._beside[layer] if self._alike(name, layer)]
        result = self._integers(names, value, 2, "MatMulInteger")
        if len(names) > 1:
            widths = self.graph.constant([self._shape(name)[0] for name in names])
            parts = self.graph.nodes("Split", result, widths, outputs=len(names), axis=1)
            self._together |= dict(zip(names, parts, strict=True))
            return self._together[layer]
        return result

    def _alike(self, one: str, other: str) -> bool:
        """Whether two layers that read one value can be multiplied at once."""
        if one == other:
            return True
        first, second, rule = self.archive.layers.get(one), self.archive.layers[other], self._rule(other)
        if first is None or not self._by_integers(one) or self._rule(one) != rule or rule is None or rule["range"] != "dynamic":
            return False
        planes = range(len(first.planes))
        same = [plane.offset for plane in first.planes] == [plane.offset for plane in second.planes]
        return same and all(weights.level_zero(first, n) == weights.level_zero(second, n) for n in planes)

    def _convolution(self, operation: ops.Convolution, value: str) -> str:
        layer = operation.layer
        settings = {"strides": [operation.stride] * 2, "pads": [operation.padding] * 4}
        if self._by_integers(layer) and not self.how.qdq:
            return self._integers([layer], value, 4, "ConvInteger", **settings)
        return self.graph.node("Conv", *self._in_float(layer, value, 4), *self._bias(layer), **settings)

    def _in_float(self, layer: str, value: str, rank: int) -> tuple[str, str]:
        """Input and weight of a product of floats: as pairs of operators where that is asked for and fits."""
        if self.how.qdq and self._by_integers(layer):
            return self._dequantized(layer, value, rank)
        self.arithmetic[layer] = "float"
        return self._float_input(layer, value, rank), self._float_weight(layer)

    def _bias(self, layer: str) -> tuple[str, ...]:
        """The layer's bias, if it has one."""
        return (self._leftover(f"{layer}.bias"),) if f"{layer}.bias" in self.archive.tensors else ()

    def _dequantized(self, layer: str, value: str, rank: int) -> tuple[str, str]:
        """Input and weight, each quantized to integers and back again."""
        graph, record, codes = self.graph, self.archive.layers[layer], self._codes(layer, value, rank)
        assert codes is not None
        self.arithmetic[layer] = "dequantized"
        total = ""
        for plane in range(len(record.planes)):
            zero = weights.level_zero(record, plane)
            levels = weights.integer_weight(graph, self.archive, record, plane)
            scale = graph.cast(graph.constant(weights.row_numbers(self.archive, record, "scale", plane)), "float32")
            points = () if zero is None else (graph.constant(np.full(record.shape[0], zero, np.uint8)),)
            weight = graph.node("DequantizeLinear", levels, scale, *points, axis=0)
            total = weight if not total else graph.node("Add", total, weight)
        given = graph.once("DequantizeLinear", codes.codes, codes.scale, *filter(None, (codes.zero_point,)))
        return (graph.node("Add", given, codes.shift) if codes.shift else given), total

    def _by_integers(self, layer: str) -> bool:
        """Whether codes of the input and levels of the weights are multiplied, rather than the floats they stand for."""
        record, rule = self.archive.layers.get(layer), self._rule(layer)
        if self.how.unpacked or record is None or rule is None or not weights.integer_planes(record):
            return False
        # Scales for each row have no place in a pair of operators, nor have offsets of weights.
        if self.how.qdq and (rule["per"] != "tensor" or any(plane.offset for plane in record.planes)):
            return False
        # A zero point for each row, or an input that is shifted, is more than integer products understand.
        if not rule["symmetric"] and (rule["per"] != "tensor" or rule["range"] == "step"):
            return False
        # Offsets are added with sums of codes, which near the edge of a picture are not those of whole windows.
        return record.kind == "Linear" or not any(plane.offset for plane in record.planes)

    def _integers(self, layers: list[str], value: str, rank: int, operator: str, **settings: Any) -> str:
        """Sum over planes of codes x levels, times both scales; what offsets of the weights add is the sum of the codes.

        Runtimes make one operation of a product, its cast, and a multiplication by a scalar times a scale for each channel.
        Where inputs have a scale for each row, that scalar is 1, and rows are scaled afterwards.
        """
        graph, records = self.graph, [self.archive.layers[layer] for layer in layers]
        self.arithmetic |= dict.fromkeys(layers, "integer")
        codes = self._codes(layers[0], value, rank)
        assert codes is not None
        total, scalar = "", self._one(value) if codes.by_row else codes.scale
        for plane, about in enumerate(records[0].planes):
            levels = [weights.integer_weight(graph, self.archive, record, plane) for record in records]
            weight = levels[0] if len(levels) == 1 else graph.node("Concat", *levels, axis=0)
            weight = graph.node("Transpose", weight, perm=[1, 0]) if operator == "MatMulInteger" else weight
            zero, points = weights.level_zero(records[0], plane), [codes.zero_point]
            if zero:
                points = [codes.zero_point or graph.constant(0, np.uint8), graph.constant(zero, np.uint8)]
            product = graph.cast(graph.node(operator, codes.codes, weight, *filter(None, points), **settings), "float32")
            scale = graph.node("Mul", scalar, self._by_channel(records, "scale", plane, rank))
            product = graph.node("Mul", product, scale)
            if about.offset:
                offset = graph.node("Mul", scalar, self._by_channel(records, "offset", plane, rank))
                product = graph.node("Add", product, graph.node("Mul", self._sums(codes), offset))
            total = product if not total else graph.node("Add", total, product)
        total = graph.node("Mul", total, inputs.column(graph, codes, rank)) if codes.by_row else total
        return self._with_biases(total, layers, rank)

    def _one(self, value: str) -> str:
        """1 as a value that is not known beforehand: a constant would be multiplied into the scales, and nothing be fused."""
        entries = self.graph.cast(self.graph.once("Size", self._first.get(2, value)), "float32")
        return self.graph.once("Div", entries, entries)

    def _by_channel(self, records: list[LayerRecord], kind: str, plane: int, rank: int) -> str:
        numbers = [weights.row_numbers(self.archive, record, kind, plane) for record in records]
        return self._channels(np.concatenate(numbers), rank)

    def _channels(self, numbers: Array, rank: int) -> str:
        """One number for each output channel, which is the second dimension of a value of that rank."""
        return self.graph.cast(self.graph.constant(numbers.reshape(-1, *[1] * (rank - 2))), "float32")

    def _with_biases(self, value: str, layers: list[str], rank: int) -> str:
        biases = [self.archive.tensors.get(f"{layer}.bias") for layer in layers]
        if all(bias is None for bias in biases):
            return value
        whole = [
            np.zeros(self._shape(layer)[0], np.float16) if b is None else b for b, layer in zip(biases, layers, strict=True)
        ]
        return self.graph.node("Add", value, self._channels(np.concatenate(whole), rank))

    def _sums(self, codes: inputs.Codes) -> str:
        """Of each row of codes, less their zero point, float32 (rows, 1)."""
        name = f"sums of {codes.codes}"
        if name not in self._per_graph:
            plain = self.graph.cast(codes.codes, "float32")
            if codes.zero_point:
                plain = self.graph.node("Sub", plain, self.graph.cast(codes.zero_point, "float32"))
            self._per_graph[name] = self.graph.node("ReduceSum", plain, self.graph.constant([1]))
        return self._per_graph[name]

    def _embedding(self, operation: ops.Embedding, ids: str) -> str:
        return self._rows(operation.layer, self.graph.node("Reshape", ids, self.graph.constant([-1])))

    def _rows(self, layer: str, ids: str) -> str:
        record = self.archive.layers.get(layer)
        if record is None:
            self.arithmetic[layer] = "float"
            rows = self.graph.node("Gather", self.graph.constant(self.archive.tensors[f"{layer}.weight"]), ids)
            return self.graph.cast(rows, "float32")
        if weights.rows_stand_alone(record) and not self.how.unpacked:
            self.arithmetic[layer] = "packed rows"
            return weights.gathered_rows(self.graph, self.archive, record, ids)
        self.arithmetic[layer] = "unpacked table"
        return self.graph.node("Gather", self._float_weight(layer), ids)

    def _positions(self, operation: ops.Positions, ids: str) -> str:
        graph = self.graph
        if operation.padding is None:
            length = graph.node("Gather", graph.node("Shape", ids), graph.constant(1))
            places = graph.node("Range", graph.constant(0), length, graph.constant(1))
            rows = self._rows(operation.layer, graph.node("Add", places, graph.constant(operation.first)))
            rows = graph.node("Unsqueeze", rows, graph.constant([0]))
            width = graph.node("Shape", rows, start=2)
            whole = graph.node("Concat", graph.node("Shape", ids), width, axis=0)
            spread = graph.node("Expand", rows, whole)
            return graph.node("Reshape", spread, graph.node("Concat", graph.constant([-1]), width, axis=0))
        real = graph.cast(graph.node("Not", graph.node("Equal", ids, graph.constant(operation.padding))), "int64")
        counted = graph.node("Mul", graph.node("CumSum", real, graph.constant(1)), real)
        places = graph.node("Add", counted, graph.constant(operation.first - 1))
        return self._rows(operation.layer, graph.node("Reshape", places, graph.constant([-1])))

    def _layer_norm(self, operation: ops.LayerNorm, value: str) -> str:
        scale, bias = (self._leftover(f"{operation.layer}.{name}") for name in ("weight", "bias"))
        return self.graph.node("LayerNormalization", value, scale, bias, axis=-1, epsilon=operation.epsilon)

    def _batch_norm(self, operation: ops.BatchNorm, value: str) -> str:
        names = [f"{operation.layer}.{name}" for name in ("running_mean", "running_var")]
        mean, variance = (self.archive.tensors[name].astype(np.float32) for name in names)
        if operation.affine:
            affine = [self._leftover(f"{operation.layer}.{name}") for name in ("weight", "bias")]
        else:
            affine = [self.graph.constant(np.ones_like(mean)), self.graph.constant(np.zeros_like(mean))]
        statistics = [self.graph.constant(mean), self.graph.constant(variance)]
        return self.graph.node("BatchNormalization", value, *affine, *statistics, epsilon=operation.epsilon)

    # What has no weights ------------------------------------------------------------------------------------------------

    def _activation(self, operation: ops.Activation, value: str) -> str:
        match operation.function:
            case "relu":
                return self.graph.node("Relu", value)
            case "tanh":
                return self.graph.node("Tanh", value)
        return self.graph.node("Gelu", value, approximate="tanh" if operation.function == "gelu_tanh" else "none")

    def _add(self, _: ops.Add, left: str, right: str) -> str:
        return self.graph.node("Add", left, right)

    def _quantize(self, operation: ops.Quantize, value: str) -> str:
        return self._rounded(operation.transform, value, self.graph.constant([operation.width]))

    def _rounded(self, transform: Transform, value: str, width: str) -> str:
        """What the codes of a value stand for, whose rows have that width."""
        graph, rule = self.graph, transform.rule
        check_scope(rule["per"], transform.name, tokens=self._tokens, lines=False)
        rows = graph.node("Reshape", value, graph.node("Concat", graph.constant([-1]), width, axis=0))
        codes = inputs.quantized(graph, self.archive, transform.name, rows, rule, 2, plain=True)
        return graph.node("Reshape", inputs.dequantized(graph, codes, 2), graph.node("Shape", value))

    def _attention(self, operation: ops.Attention, query: str, key: str, value: str) -> str:
        graph, heads, width = self.graph, operation.heads, operation.head_width
        if graph.opset >= ATTENTION_OPSET and operation.probabilities is None:
            whole = graph.node("Concat", self._shape_of_ids(), graph.constant([heads * width]), axis=0)
            values = [graph.node("Reshape", each, whole) for each in (query, key, value)]
            counts = {"q_num_heads": heads, "kv_num_heads": heads, "scale": 1.0 / math.sqrt(width)}
            mixed = graph.node("Attention", *values, self._hidden_from_all(), **counts)
            return graph.node("Reshape", mixed, graph.constant([-1, heads * width]))
        texts = graph.node("Concat", self._shape_of_ids(), graph.constant([heads, width]), axis=0)

        def by_head(of: str, order: list[int]) -> str:
            return graph.node("Transpose", graph.node("Reshape", of, texts), perm=order)

        scaled = graph.node("Mul", by_head(query, [0, 2, 1, 3]), graph.constant(1.0 / math.sqrt(width)))
        scores = graph.node("MatMul", scaled, by_head(key, [0, 2, 3, 1]))
        attention = graph.node("Softmax", graph.node("Add", scores, self._hidden()), axis=-1)
        if operation.probabilities is not None:
            length = graph.node("Shape", attention, start=3)
            attention = self._rounded(operation.probabilities, attention, length)
        mixed = graph.node("Transpose", graph.node("MatMul", attention, by_head(value, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
        return graph.node("Reshape", mixed, graph.constant([-1, heads * width]))

    def _shape_of_ids(self) -> str:
        return self.graph.once("Shape", "input_ids")

    def _hidden(self) -> str:
        """0 for real tokens and the lowest number for padding, (texts, 1, 1, length)."""
        if "hidden" not in self._per_graph:
            graph = self.graph
            padding = graph.node("Sub", graph.constant(1.0), graph.cast("attention_mask", "float32"))
            low = graph.node("Mul", padding, graph.constant(np.array(np.finfo(np.float32).min)))
            self._per_graph["hidden"] = graph.node("Unsqueeze", low, graph.constant([1, 2]))
        return self._per_graph["hidden"]

    def _hidden_from_all(self) -> str:
        """The same for each query, (texts, 1, length, length)."""
        if "hidden from all" not in self._per_graph:
            graph, ids = self.graph, self._shape_of_ids()
            texts, length = (graph.node("Slice", ids, graph.constant([n]), graph.constant([n + 1])) for n in (0, 1))
            whole = graph.node("Concat", texts, graph.constant([1]), length, length, axis=0)
            self._per_graph["hidden from all"] = graph.node("Expand", self._hidden(), whole)
        return self._per_graph["hidden from all"]

    def _first_token(self, _: ops.FirstToken, value: str) -> str:
        texts = self._by_text(ops.ByText(), value)
        self._first.clear()
        self._tokens = False
        return self.graph.node("Gather", texts, self.graph.constant(0), axis=1)

    def _by_text(self, _: ops.ByText, value: str) -> str:
        width = self.graph.node("Shape", value, start=1)
        return self.graph.node("Reshape", value, self.graph.node("Concat", self._shape_of_ids(), width, axis=0))

    def _max_pool(self, operation: ops.MaxPool, value: str) -> str:
        return self.graph.node("MaxPool", value, kernel_shape=list(operation.window), strides=list(operation.window))

    def _average_pool(self, operation: ops.AveragePool, value: str) -> str:
        return self.graph.node("AveragePool", value, kernel_shape=list(operation.window), strides=list(operation.window))

    def _mean(self, _: ops.Mean, value: str) -> str:
        return self.graph.node("ReduceMean", value, self.graph.constant([2, 3]), keepdims=0)

    def _flatten(self, _: ops.Flatten, value: str) -> str:
        return self.graph.node("Flatten", value, axis=1)
