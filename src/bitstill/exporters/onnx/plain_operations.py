"""Norms, activations, sums and pooling: one operator of ONNX each."""

from __future__ import annotations

import numpy as np

from bitstill.exporters.onnx.lowering import Lowering
from bitstill.program import operations as ops


def layer_norm(low: Lowering, operation: ops.LayerNorm, value: str) -> str:
    """Over the last dimension."""
    scale, bias = (low.leftover(f"{operation.layer}.{name}") for name in ("weight", "bias"))
    return low.graph.node("LayerNormalization", value, scale, bias, axis=-1, epsilon=operation.epsilon)


def batch_norm(low: Lowering, operation: ops.BatchNorm, value: str) -> str:
    """With the statistics of training."""
    names = [f"{operation.layer}.{name}" for name in ("running_mean", "running_var")]
    mean, variance = (low.archive.tensors[name].astype(np.float32) for name in names)
    if operation.affine:
        affine = [low.leftover(f"{operation.layer}.{name}") for name in ("weight", "bias")]
    else:
        affine = [low.graph.constant(np.ones_like(mean)), low.graph.constant(np.zeros_like(mean))]
    statistics = [low.graph.constant(mean), low.graph.constant(variance)]
    return low.graph.node("BatchNormalization", value, *affine, *statistics, epsilon=operation.epsilon)


def activation(low: Lowering, operation: ops.Activation, value: str) -> str:
    """Elementwise."""
    match operation.function:
        case "relu":
            return low.graph.node("Relu", value)
        case "tanh":
            return low.graph.node("Tanh", value)
    return low.graph.node("Gelu", value, approximate="tanh" if operation.function == "gelu_tanh" else "none")


def add(low: Lowering, _operation: ops.Add, left: str, right: str) -> str:
    """Sum of two values."""
    return low.graph.node("Add", left, right)


def max_pool(low: Lowering, operation: ops.MaxPool, value: str) -> str:
    """Over windows that do not overlap."""
    return low.graph.node("MaxPool", value, kernel_shape=list(operation.window), strides=list(operation.window))


def average_pool(low: Lowering, operation: ops.AveragePool, value: str) -> str:
    """Over windows that do not overlap."""
    return low.graph.node("AveragePool", value, kernel_shape=list(operation.window), strides=list(operation.window))


def mean(low: Lowering, _operation: ops.Mean, value: str) -> str:
    """Over height and width."""
    return low.graph.node("ReduceMean", value, low.graph.constant([2, 3]), keepdims=0)


def flatten(low: Lowering, _operation: ops.Flatten, value: str) -> str:
    """Everything but the samples into one dimension."""
    return low.graph.node("Flatten", value, axis=1)
