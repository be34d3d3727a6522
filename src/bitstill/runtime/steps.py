"""The steps of each operation."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitstill.errors import ArtifactError
from bitstill.program import operations as ops
from bitstill.runtime.builder import Builder
from bitstill.runtime.layer_weights import expect
from bitstill.runtime.structs import FUNCTIONS, Epilogue, EpilogueKind, Op, Pooling, Step, aligned
from bitstill.runtime.values import Shape

LARGER_IMAGE = "Give a larger image."


def image_input(builder: Builder, place: int, about: ops.Input, sizes: Mapping[str, int]) -> None:
    """An input of floats: (samples, channels, height, width), or (samples, channels)."""
    known = [size if isinstance(size, int) else sizes[size] for size in about.shape[1:]]
    channels, height, width = (*known, 1, 1)[:3]
    step = Step(op=Op.INPUT, index=place, height=height, width=width, channels=channels)
    builder.emit(step, (), Shape("sample", channels, height, width), about.name)


def _gather(builder: Builder, operation: ops.Embedding | ops.Positions, output: str, _ids: str) -> None:
    table, plan = builder.layers.table(operation.layer), builder.plan
    if plan.indices:
        expect("tables of one width", plan.values[plan.steps[0].output].shape.width, table.struct.length, operation.layer)
    plan.indices.append(operation)
    step = Step(op=Op.GATHER, table=ctypes.pointer(table.struct), index=len(plan.indices) - 1)
    builder.emit(step, (), Shape("token", table.struct.length), output)


def _norm(builder: Builder, operation: ops.LayerNorm, output: str, name: str) -> None:
    layers, shape = builder.layers, builder.shape(name)
    weight, bias = (layers.leftover(f"{operation.layer}.{part}", shape.width) for part in ("weight", "bias"))
    weight = np.ones(shape.width, np.float32) if weight is None else weight
    bias = np.zeros(shape.width, np.float32) if bias is None else bias
    step = Step(op=Op.NORM, epsilon=operation.epsilon, weight=layers.numbers(weight), bias=layers.numbers(bias))
    builder.emit(step, (builder.numbers[name],), shape, output)


def _activation(builder: Builder, operation: ops.Activation, output: str, name: str) -> None:
    builder.elementwise(output, Epilogue(kind=EpilogueKind.FUNCTION, function=FUNCTIONS[operation.function]), name)


def _add(builder: Builder, _operation: ops.Add, output: str, name: str, other: str) -> None:
    expect("two values of one shape to add", builder.shape(name), builder.shape(other), output)
    earlier, later = sorted((other, name), key=lambda each: builder.plan.values[builder.numbers[each]].written)
    builder.elementwise(output, Epilogue(kind=EpilogueKind.ADD), later, earlier)


def _batch_norm(builder: Builder, operation: ops.BatchNorm, output: str, name: str) -> None:
    layers, width = builder.layers, builder.shape(name).width
    weight, bias = (layers.leftover(f"{operation.layer}.{part}", width) for part in ("weight", "bias"))
    mean, variance = (layers.required(f"{operation.layer}.running_{part}", width) for part in ("mean", "var"))
    scale = np.float32(1) / np.sqrt(variance + np.float32(operation.epsilon))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    epilogue = Epilogue(kind=EpilogueKind.AFFINE, scale=layers.numbers(scale), shift=layers.numbers(shift))
    builder.elementwise(output, epilogue, name)


def _attention(builder: Builder, operation: ops.Attention, output: str, *names: str) -> None:
    inputs, width = tuple(builder.numbers[name] for name in names), operation.heads * operation.head_width
    for shape in map(builder.shape, names):
        expect("as many numbers as heads have", width, shape.pixels * shape.width, output)
    step = Step(op=Op.ATTEND, heads=operation.heads, head_width=operation.head_width)
    if operation.probabilities is not None:
        step.quantized, step.rule = 1, builder.quantizer(operation.probabilities, Shape("token", width))
        if not step.rule.rows_per_range and step.rule.needs_range:
            ranges = Step.from_buffer_copy(step)
            ranges.op = Op.ATTEND_RANGES
            shape = Shape("text", 2 * operation.heads)  # min and max of each head, interleaved
            inputs = (*inputs, builder.emit(ranges, inputs, shape, f"{output} ranges"))
    builder.emit(step, inputs, Shape("token", width), output)


def _quantize(builder: Builder, operation: ops.Quantize, output: str, name: str) -> None:
    before = builder.shape(name)
    rows = Shape(before.per, operation.width, before.width // operation.width)
    expect("whole rows", before.width, rows.width * rows.height, operation.transform.name)
    codes = builder.codes(operation.transform, builder.numbers[name], rows)
    builder.emit(Step(op=Op.MAP, quantized=1), (codes,), rows, output)


def _first_token(builder: Builder, _operation: ops.FirstToken, output: str, name: str) -> None:
    builder.emit(Step(op=Op.FIRST_TOKEN), (builder.numbers[name],), Shape("text", builder.shape(name).width), output)


def _by_text(builder: Builder, _operation: ops.ByText, output: str, name: str) -> None:
    builder.numbers[output] = builder.numbers[name]  # rows are in that order already


def _linear(builder: Builder, operation: ops.Linear, output: str, name: str) -> None:
    before = builder.shape(name)
    inputs = builder.layers.matrix(operation.layer).struct.inputs
    expect("rows, and as many inputs as there are", (1, before.width), (before.pixels, inputs), operation.layer)
    rows = replace(before, width=aligned(before.width))
    _product(builder, Step(op=Op.LINEAR), operation.layer, name, rows, replace(before, width=0), output)


def _convolution(builder: Builder, operation: ops.Convolution, output: str, name: str) -> None:
    before, kernel = builder.shape(name), builder.layers.kernel_shape(operation.layer)
    dimensions = (len(kernel), *kernel[1:2])
    expect("a kernel of four dimensions for these channels", (4, before.width), dimensions, operation.layer)
    around, (kernel_height, kernel_width) = 2 * operation.padding, kernel[2:]
    out_height = (before.height + around - kernel_height) // operation.stride + 1
    out_width = (before.across + around - kernel_width) // operation.stride + 1
    if min(out_height, out_width) < 1:
        wanted, size = f"at least {kernel_height} x {kernel_width} with padding", f"{before.height} x {before.across}"
        raise ArtifactError(wanted, given=size, where=operation.layer, fix=LARGER_IMAGE)
    step = Step(
        op=Op.CONVOLVE, height=before.height, width=before.across, channels=before.width,
        kernel_height=kernel_height, kernel_width=kernel_width, stride=operation.stride, padding=operation.padding,
        out_height=out_height, out_width=out_width,
    )  # fmt: skip
    _product(builder, step, operation.layer, name, before, Shape(before.per, 0, out_height, out_width), output)


def _product(builder: Builder, step: Step, layer: str, name: str, rows: Shape, shape: Shape, output: str) -> None:
    """A layer's product and bias; the shape's width is that of the layer's outputs."""
    weight = builder.layers.matrix(layer)
    number, step.quantized = builder.quantized_input(layer, name, rows, by_integers=weight.by_integers)
    step.matrix = ctypes.pointer(weight.struct)
    shape = replace(shape, width=weight.struct.outputs)
    builder.emit(step, (number,), shape, output)
    bias = builder.layers.leftover(f"{layer}.bias", shape.width)
    if bias is not None:
        step.epilogue[0] = Epilogue(kind=EpilogueKind.AFFINE, shift=builder.layers.numbers(bias))


def _max_pool(builder: Builder, operation: ops.MaxPool, output: str, name: str) -> None:
    _pool(builder, name, output, operation.window, Pooling.MAX)


def _average_pool(builder: Builder, operation: ops.AveragePool, output: str, name: str) -> None:
    _pool(builder, name, output, operation.window, Pooling.MEAN)


def _mean(builder: Builder, _operation: ops.Mean, output: str, name: str) -> None:
    before = builder.shape(name)
    _pool(builder, name, output, (before.height, before.across), Pooling.MEAN)


def _pool(builder: Builder, name: str, output: str, window: tuple[int, int], pooling: Pooling) -> None:
    before, (height, width) = builder.shape(name), window
    out_height, out_width = before.height // height, before.across // width
    if min(out_height, out_width) < 1:
        size = f"{before.height} x {before.across}"
        raise ArtifactError(f"at least {height} x {width} to pool", given=size, where="input", fix=LARGER_IMAGE)
    step = Step(
        op=Op.POOL, height=before.height, width=before.across, channels=before.width, kernel_height=height,
        kernel_width=width, out_height=out_height, out_width=out_width, pooling=pooling,
    )  # fmt: skip
    builder.emit(step, (builder.numbers[name],), Shape(before.per, before.width, out_height, out_width), output)


def _flatten(builder: Builder, _operation: ops.Flatten, output: str, name: str) -> None:
    before = builder.shape(name)
    step = Step(op=Op.FLATTEN, height=before.height, width=before.across, channels=before.width)
    builder.emit(step, (builder.numbers[name],), Shape(before.per, before.width * before.pixels), output)


STEPS: Mapping[type[Any], Callable[..., None]] = {
    ops.Embedding: _gather, ops.Positions: _gather, ops.Linear: _linear, ops.LayerNorm: _norm, ops.Activation: _activation,
    ops.Add: _add, ops.Quantize: _quantize, ops.Attention: _attention, ops.FirstToken: _first_token, ops.ByText: _by_text,
    ops.Convolution: _convolution, ops.BatchNorm: _batch_norm, ops.MaxPool: _max_pool, ops.AveragePool: _average_pool,
    ops.Mean: _mean, ops.Flatten: _flatten,
}  # fmt: skip
"""Planning function by operation: takes the builder, the operation, and the names of its output and inputs."""
