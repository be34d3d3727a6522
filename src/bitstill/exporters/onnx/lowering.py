"""The builder of a program's ONNX graph, with queries on layers for all operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bitstill.artifact.reader import Archive
from bitstill.exporters.onnx import initializers
from bitstill.exporters.onnx import input_codes as inputs
from bitstill.exporters.onnx.graph import Graph
from bitstill.program import operations as ops
from bitstill.program.operations import Program
from bitstill.program.scopes import check_scope

PER_TENSOR: Mapping[str, Any] = {"bits": 8, "symmetric": False, "per": "tensor", "range": "dynamic"}
"""The rule of ONNX `DynamicQuantizeLinear`."""
Arithmetic = Literal["integer", "float", "packed rows", "unpacked table", "packed blocks", "dequantized"]
Products = Literal["integer", "blocks", "qdq", "unpacked"]
"""Arithmetic of layers with quantized inputs and integer levels.

integer: codes, as in training.
blocks: linear layers by ONNX Runtime's own operator, which quantizes inputs in blocks, if they fit.
qdq: floats, with integer inputs and weights as pairs of quantizing and dequantizing operators, as compilers for other hardware
    expect.
unpacked: floats, with weights as constants under the layers' names, for other packers.
"""


@dataclass
class Lowering:
    """A graph so far.

    Args:
        program, archive: an artifact's.
        graph: its nodes.
        products: how layers are multiplied.
        per_tensor: whether inputs are quantized with one range per tensor where training had one per token or sample.
        arithmetic: how each layer is computed, by its name.
        shared: names of values that are computed once, by what they are.
        split: outputs of layers that were multiplied together, by layer.
        tokens: whether values have a row for each token.
    """

    program: Program
    archive: Archive
    graph: Graph
    products: Products
    per_tensor: bool
    arithmetic: dict[str, Arithmetic] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    split: dict[str, str] = field(default_factory=dict)
    tokens: bool = False

    def __post_init__(self) -> None:
        self.tokens = any(each.name == "input_ids" for each in self.program.inputs)
        self._codes: dict[tuple[str, ...], inputs.Codes] = {}
        self._rows: dict[int, str] = {}
        readers: dict[str, list[str]] = {}
        for step in self.program.steps:
            if isinstance(step.operation, ops.Linear):
                readers.setdefault(step.inputs[0], []).append(step.operation.layer)
        self._siblings = {layer: layers for layers in readers.values() for layer in layers}

    @property
    def unpacked(self) -> bool:
        """Whether weights are float constants under the layers' names."""
        return self.products == "unpacked"

    def leftover(self, name: str) -> str:
        """A tensor that was not compressed, in float32."""
        return self.graph.cast(self.graph.constant(self.archive.tensors[name]), "float32")

    def bias(self, layer: str) -> tuple[str, ...]:
        """The layer's bias, if it has one."""
        return (self.leftover(f"{layer}.bias"),) if f"{layer}.bias" in self.archive.tensors else ()

    def shape(self, layer: str) -> tuple[int, ...]:
        """Shape of the layer's weight."""
        record = self.archive.layers.get(layer)
        return record.shape if record is not None else self.archive.tensors[f"{layer}.weight"].shape

    def siblings(self, layer: str) -> list[str]:
        """Linear layers that read the value that this one reads, itself among them."""
        return self._siblings[layer]

    def float_weight(self, layer: str) -> str:
        """The layer's effective weight, in float32."""
        record = self.archive.layers.get(layer)
        if record is None:
            return self.leftover(f"{layer}.weight")
        if self.unpacked:
            return self.graph.named_constant(layer, self.archive.weight(layer))
        return initializers.float_weight(self.graph, self.archive, record)

    def rule(self, layer: str) -> Mapping[str, Any] | None:
        """The rule by which the layer's input is quantized: that of training, or the one per tensor in its place."""
        record = self.archive.layers.get(layer)
        rule = None if record is None else record.input
        replaceable = rule is not None and rule["range"] == "dynamic" and rule["bits"] == 8 and rule["per"] != "tensor"
        return PER_TENSOR if replaceable and self.per_tensor else rule

    def rows_of(self, rank: int, value: str) -> str:
        """A value with as many entries in its first dimension as others of that rank: the first that was asked about.

        Until the first tokens are taken out, every value of a rank has a row for each token of the batch.
        """
        return self._rows.setdefault(rank, value)

    def first_tokens(self) -> None:
        """Mark that values have one row per text from now on."""
        self._rows.clear()
        self.tokens = False

    def codes(self, layer: str, value: str, rank: int) -> inputs.Codes | None:
        """The layer's quantized input, computed once where several layers quantize one value in the same way."""
        rule = self.rule(layer)
        if rule is None:
            return None
        own = layer if rule["range"] != "dynamic" else ""
        key = (value, own, *(f"{name}={rule[name]}" for name in sorted(rule)))
        if key not in self._codes:
            otherwise = "export it with activations per-tensor"
            check_scope(rule["per"], layer, tokens=self.tokens, lines=rank > 2, otherwise=otherwise)
            transform, rows = f"{layer}.input_transform", self.rows_of(rank, value)
            self._codes[key] = inputs.quantized(
                self.graph, self.archive, transform, value, rule, rank, rows, plain=self.unpacked
            )
        return self._codes[key]
