"""A program as an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bitstill.artifact.reader import Archive
from bitstill.exporters.onnx import plain_operations as plain
from bitstill.exporters.onnx import products as layers
from bitstill.exporters.onnx import text_operations as texts
from bitstill.exporters.onnx.graph import OPSET, Graph
from bitstill.exporters.onnx.lowering import PER_TENSOR, Arithmetic, Lowering, Products
from bitstill.program import operations as ops
from bitstill.program.operations import Program

__all__ = ["PER_TENSOR", "Arithmetic", "Lowered", "Products", "lower"]

OPERATIONS: Mapping[type[Any], Callable[..., str]] = {
    ops.Embedding: texts.embedding, ops.Positions: texts.positions, ops.Quantize: texts.quantize,
    ops.Attention: texts.attention, ops.FirstToken: texts.first_token, ops.ByText: texts.by_text,
    ops.Linear: layers.linear, ops.Convolution: layers.convolution,
    ops.LayerNorm: plain.layer_norm, ops.BatchNorm: plain.batch_norm, ops.Activation: plain.activation, ops.Add: plain.add,
    ops.MaxPool: plain.max_pool, ops.AveragePool: plain.average_pool, ops.Mean: plain.mean, ops.Flatten: plain.flatten,
}  # fmt: skip
"""Lowering function by operation: takes the builder, the operation and the names of its inputs; returns its output's name."""


@dataclass(frozen=True)
class Lowered:
    """A finished file.

    Args:
        data: its bytes.
        arithmetic: arithmetic of each layer.
    """

    data: bytes
    arithmetic: dict[str, Arithmetic]


def lower(
    program: Program, archive: Archive, *, products: Products = "integer", per_tensor: bool = False, opset: int = OPSET
) -> Lowered:
    """The ONNX file of a program with the weights of an artifact.

    Args:
        program: program of the artifact.
        archive: the artifact.
        products: arithmetic of products.
        per_tensor: quantize inputs with one range per tensor where training had one per token or sample: an approximation for
            which runtimes have a fused operation.
        opset: the operator set.

    Raises:
        SpecError: an operator set that is too old, or newer than the onnx package.
        ArtifactError: inputs of a layer have ranges of a scope that programs do not support.
        MissingPackageError: without onnx.
    """
    low = Lowering(program, archive, Graph(opset), products, per_tensor)
    names = {each.name: each.name for each in program.inputs}
    for step in program.steps:
        operands = [names[name] for name in step.inputs]
        names[step.output] = OPERATIONS[type(step.operation)](low, step.operation, *operands)
    low.graph.named(names[program.steps[-1].output], program.result)
    inputs = [(each.name, each.dtype, each.shape) for each in program.inputs]
    result = (program.result, "float32", _result_shape(low))
    return Lowered(low.graph.model(inputs, result, "bitstill"), low.arithmetic)


def _result_shape(low: Lowering) -> tuple[int | str, ...]:
    last = low.program.steps[-1].operation
    if isinstance(last, ops.ByText):
        before = low.program.steps[-2].operation
        assert isinstance(before, ops.LayerNorm)
        return ("batch", "length", low.shape(before.layer)[0])
    assert isinstance(last, ops.Linear)
    return ("batch", low.shape(last.layer)[0])
