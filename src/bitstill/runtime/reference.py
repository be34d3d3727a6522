"""The reference engine in numpy: a slow fallback without the C library, and the oracle for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError
from bitstill.program import operations as ops
from bitstill.program.operations import Program, Transform
from bitstill.program.scopes import check_scope

Array = npt.NDArray[Any]
_TINY = np.finfo(np.float32).tiny


class Reference:
    """A program, operation by operation, in float32: effective weights times quantized and dequantized inputs."""

    def __init__(self, archive: Archive, program: Program) -> None:
        self.archive, self.program = archive, program
        self._by_token = _by_token(program)
        self._weights: dict[str, Array] = {}
        self._operations: dict[type[Any], Callable[..., Array]] = {
            ops.Linear: self._linear, ops.Quantize: self._quantize, ops.LayerNorm: self._norm,
            ops.Activation: self._activation, ops.Add: self._add,
            ops.Convolution: self._convolution, ops.BatchNorm: self._batch_norm, ops.MaxPool: self._max_pool,
            ops.AveragePool: self._average_pool, ops.Mean: self._mean, ops.Flatten: self._flatten,
        }  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """Bytes held by the weights: unpacked ones, and those of the file."""
        held = (*self._weights.values(), *self.archive.tensors.values())
        return sum(array.nbytes for array in held)

    def texts(self, rows: Mapping[str, Array], real: Array) -> Array:
        """Outputs for texts: rows of tables (texts, length) by layer, and which tokens are real."""
        values: dict[str, Array] = {}
        for step in self.program.steps:
            match step.operation:
                case ops.Embedding(layer) | ops.Positions(layer):
                    values[step.output] = self._weight(layer)[rows[layer].reshape(-1)]
                case ops.Attention():
                    values[step.output] = self._attention(step.operation, real, *(values[name] for name in step.inputs))
                case ops.FirstToken():
                    tokens = values[step.inputs[0]]
                    values[step.output] = tokens.reshape(*real.shape, tokens.shape[1])[:, 0]
                case ops.ByText():
                    tokens = values[step.inputs[0]]
                    values[step.output] = tokens.reshape(*real.shape, tokens.shape[1])
                case operation:
                    values[step.output] = self._operations[type(operation)](operation, *(values[name] for name in step.inputs))
        return values[self.program.steps[-1].output]

    def images(self, image: Array) -> Array:
        """Outputs for images (samples, channels, height, width)."""
        values = {self.program.inputs[0].name: image}
        for step in self.program.steps:
            inputs = (values[name] for name in step.inputs)
            values[step.output] = self._operations[type(step.operation)](step.operation, *inputs)
        return values[self.program.steps[-1].output]

    def _weight(self, layer: str) -> Array:
        if layer not in self._weights:
            packed = layer in self.archive.layers
            weight = self.archive.weight(layer) if packed else self.archive.tensors[f"{layer}.weight"].astype(np.float32)
            self._weights[layer] = weight
        return self._weights[layer]

    def _leftover(self, name: str) -> Array | None:
        tensor = self.archive.tensors.get(name)
        return None if tensor is None else tensor.astype(np.float32)

    # Operations ------------------------------------------------------------------------------------------------------------

    def _linear(self, operation: ops.Linear, x: Array) -> Array:
        bias = self._leftover(f"{operation.layer}.bias")
        y: Array = self._input(operation.layer, x) @ self._weight(operation.layer).T
        return y if bias is None else y + bias

    def _convolution(self, operation: ops.Convolution, x: Array) -> Array:
        weight, edge = self._weight(operation.layer), operation.padding
        x = np.pad(self._input(operation.layer, x), ((0, 0), (0, 0), (edge, edge), (edge, edge)))
        if min(size - kernel for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)) < 0:
            size = f"at least {weight.shape[2]} x {weight.shape[3]} with padding"
            raise ArtifactError(size, given=str(x.shape[2:]), where=operation.layer, fix="Give a larger image.")
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
        windows = windows[:, :, :: operation.stride, :: operation.stride]
        y: Array = np.einsum("schwij,ocij->sohw", windows, weight, optimize=True)
        bias = self._leftover(f"{operation.layer}.bias")
        return y if bias is None else y + bias[:, None, None]

    def _input(self, layer: str, x: Array) -> Array:
        record = self.archive.layers.get(layer)
        if record is None or record.input is None:
            return x
        check_scope(record.input["per"], layer, tokens=layer in self._by_token, lines=x.ndim > 2)
        return self._quantized(Transform(f"{layer}.input_transform", record.input), x)

    def _quantized(self, transform: Transform, x: Array) -> Array:
        rule = transform.rule
        axes = None if rule["per"] == "tensor" else (x.ndim - 1,) if rule["per"] == "token" else tuple(range(1, x.ndim))
        return _quantized(x, rule, axes, self.archive.learned(transform.name, rule))

    def _quantize(self, operation: ops.Quantize, x: Array) -> Array:
        check_scope(operation.transform.rule["per"], operation.transform.name, tokens=True, lines=False)
        return self._quantized(operation.transform, x.reshape(-1, operation.width)).reshape(x.shape)

    def _norm(self, operation: ops.LayerNorm, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(operation.epsilon))
        return self._affine(operation.layer, y, 1)

    def _batch_norm(self, operation: ops.BatchNorm, x: Array) -> Array:
        trailing = x.ndim - 1
        mean, variance = (
            self.archive.tensors[f"{operation.layer}.running_{name}"].astype(np.float32) for name in ("mean", "var")
        )
        column = (-1, *[1] * (trailing - 1))
        y = (x - mean.reshape(column)) / np.sqrt(variance.reshape(column) + np.float32(operation.epsilon))
        return self._affine(operation.layer, y, trailing)

    def _affine(self, layer: str, y: Array, trailing: int) -> Array:
        column = (-1, *[1] * (trailing - 1))
        weight, bias = self._leftover(f"{layer}.weight"), self._leftover(f"{layer}.bias")
        y = y if weight is None else y * weight.reshape(column)
        return y if bias is None else y + bias.reshape(column)

    def _activation(self, operation: ops.Activation, x: Array) -> Array:
        y: Array
        match operation.function:
            case "relu":
                y = np.maximum(x, 0)
            case "gelu":
                y = x * np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5))))
            case "gelu_tanh":
                y = x * np.float32(0.5) * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
            case "tanh":
                y = np.tanh(x)
        return y

    def _add(self, _operation: ops.Add, x: Array, y: Array) -> Array:
        total: Array = x + y
        return total

    def _attention(self, operation: ops.Attention, real: Array, *operands: Array) -> Array:
        heads, width = operation.heads, operation.head_width
        query, key, value = (each.reshape(*real.shape, heads, width).transpose(0, 2, 1, 3) for each in operands)
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(width))
        scores = np.where(real[:, None, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        if operation.probabilities is not None:
            check_scope(operation.probabilities.rule["per"], operation.probabilities.name, tokens=True, lines=False)
            weights = self._quantized(operation.probabilities, weights)
        mixed: Array = (weights @ value).transpose(0, 2, 1, 3).reshape(-1, heads * width)
        return mixed

    def _max_pool(self, operation: ops.MaxPool, x: Array) -> Array:
        result: Array = _windows(x, operation.window).max((3, 5))
        return result

    def _average_pool(self, operation: ops.AveragePool, x: Array) -> Array:
        result: Array = _windows(x, operation.window).mean((3, 5))
        return result

    def _mean(self, _operation: ops.Mean, x: Array) -> Array:
        result: Array = x.mean((2, 3))
        return result

    def _flatten(self, _operation: ops.Flatten, x: Array) -> Array:
        return x.reshape(len(x), -1)


def _by_token(program: Program) -> set[str]:
    """Layers whose input has a row per token."""
    values, layers = {"input_ids", "token_type_ids"}, set()
    for step in program.steps:
        if values & set(step.inputs) and not isinstance(step.operation, ops.FirstToken):
            values.add(step.output)
            layers |= {step.operation.layer} if isinstance(step.operation, ops.Linear) else set()
    return layers


def _windows(x: Array, window: tuple[int, int]) -> Array:
    """(samples, channels, height, width) -> (samples, channels, rows, window rows, columns, window columns)."""
    (high, wide), (rows, columns) = x.shape[2:], window
    if high < rows or wide < columns:
        fix = "Give a larger image."
        raise ArtifactError(f"at least {rows} x {columns} to pool", given=f"{high} x {wide}", where="input", fix=fix)
    cut = x[:, :, : high // rows * rows, : wide // columns * columns]
    return cut.reshape(*x.shape[:2], high // rows, rows, wide // columns, columns)


def _quantized(x: Array, rule: Mapping[str, Any], axes: tuple[int, ...] | None, learned: Mapping[str, np.float32]) -> Array:
    """Codes times scales, as `ops.inputs` says."""
    bits, symmetric = rule["bits"], rule["symmetric"]
    if rule["range"] == "step":
        step = learned["step"]
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
        shift = np.float32(0) if symmetric else x.min()
        stepped: Array = np.round(np.clip((x - shift) / step, least, most)) * step + shift
        return stepped
    if rule["range"] == "clip":
        x = np.minimum(np.maximum(x, learned["low"]), learned["high"])
    if symmetric:
        scale = _usable(np.abs(x).max(axes, keepdims=True) / np.float32(2 ** (bits - 1) - 1))
        symmetrical: Array = np.round(x / scale) * scale
        return symmetrical
    top = np.float32(2**bits - 1)
    floor, ceiling = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    scale = _usable((ceiling - floor) / top)
    zero = np.clip(np.round(-floor / scale), 0, top)
    shifted: Array = (np.clip(np.round(x / scale) + zero, 0, top) - zero) * scale
    return shifted


def _usable(scale: Array) -> Array:
    return np.where(scale < _TINY, np.float32(1), scale)


def _erf(x: Array) -> Array:
    """The error function: numpy has none, and Python's is for one number."""
    return np.array([math.erf(value) for value in x.ravel().tolist()], np.float32).reshape(x.shape)
