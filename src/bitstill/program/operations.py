"""The computation of a delivered network as a short list of operations over named values, the same for every runtime.

A program is planned from an artifact's `config.json` alone. It defines the layers and their order; runtimes decide how to store
and multiply weights. Values are float32. In an encoder they have the shape (tokens, width), with the tokens of all texts in the
batch concatenated; in a convolutional network (samples, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bitstill.errors import ArtifactError

MOST_STEPS = 100_000
Function = Literal["relu", "gelu", "gelu_tanh", "tanh"]


@dataclass(frozen=True)
class Embedding:
    """Rows of a table: ids (texts, length) -> (tokens, width)."""

    layer: str


@dataclass(frozen=True)
class Positions:
    """Rows of a table by position in the text, counted from `first`: ids (texts, length) -> (tokens, width).

    With `padding`, an id, only other ids are counted, and that one has position `padding` (RoBERTa).
    """

    layer: str
    first: int = 0
    padding: int | None = None


@dataclass(frozen=True)
class Linear:
    """(..., inputs) -> (..., outputs)."""

    layer: str


@dataclass(frozen=True)
class LayerNorm:
    """Over the last dimension."""

    layer: str
    epsilon: float


@dataclass(frozen=True)
class Activation:
    """Elementwise."""

    function: Function


@dataclass(frozen=True)
class Add:
    """Sum of two values of equal shape."""


@dataclass(frozen=True)
class Transform:
    """Quantization of a value.

    Args:
        name: prefix of the names of learned bounds and steps.
        rule: the fields of `QuantizeInput`.
    """

    name: str
    rule: Mapping[str, Any]


@dataclass(frozen=True)
class Quantize:
    """Quantized and dequantized value, of the same shape.

    Args:
        transform: the quantization.
        width: length of a row: a range per "token" is that of one row.
    """

    transform: Transform
    width: int


@dataclass(frozen=True)
class Attention:
    """softmax(q k^T / sqrt(head width)) v, for each text and head: three of (tokens, heads x head width) -> one.

    With `probabilities`, the softmax is quantized before the product with v; a row is one of the softmax.
    """

    heads: int
    head_width: int
    probabilities: Transform | None = None


@dataclass(frozen=True)
class FirstToken:
    """First token of each text: (tokens, width) -> (texts, width)."""


@dataclass(frozen=True)
class ByText:
    """Tokens grouped by text: (tokens, width) -> (texts, length, width). Values at padding are arbitrary."""


@dataclass(frozen=True)
class Convolution:
    """Two-dimensional convolution with zero padding."""

    layer: str
    stride: int
    padding: int
    bias: bool = True


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm with running statistics; `affine` adds a weight and a bias."""

    layer: str
    epsilon: float
    affine: bool


@dataclass(frozen=True)
class MaxPool:
    """Pooling over non-overlapping windows; incomplete windows at the edge are dropped."""

    window: tuple[int, int]


@dataclass(frozen=True)
class AveragePool:
    """Pooling over non-overlapping windows; incomplete windows at the edge are dropped."""

    window: tuple[int, int]


@dataclass(frozen=True)
class Mean:
    """Mean over height and width: (samples, channels)."""


@dataclass(frozen=True)
class Flatten:
    """All dimensions but the first into one."""


Operation = (
    Embedding | Positions | Linear | LayerNorm | Activation | Add | Quantize | Attention | FirstToken | ByText
    | Convolution | BatchNorm | MaxPool | AveragePool | Mean | Flatten
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operation from existing values to a new one."""

    operation: Operation
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Input:
    """Input of a program.

    Args:
        name: name in runtimes.
        dtype: "int64" or "float32".
        shape: sizes, or names of free dimensions.
    """

    name: str
    dtype: Literal["int64", "float32"]
    shape: tuple[int | str, ...]


@dataclass
class Program:
    """Operations in order; the last one's output is the result.

    Args:
        inputs: inputs of the network.
        result: name of the output in runtimes.
        steps: steps in order.
    """

    inputs: tuple[Input, ...]
    result: str = "logits"
    steps: list[Step] = field(default_factory=list)

    def do(self, operation: Operation, *inputs: str) -> str:
        """Append an operation; returns the name of its output.

        Raises:
            ArtifactError: there are too many.
        """
        if len(self.steps) >= MOST_STEPS:
            fix = "A number in config.json is wrong; deliver the model again."
            raise ArtifactError(f"at most {MOST_STEPS} operations", given="more", where="config.json", fix=fix)
        output = f"v{len(self.steps)}"
        self.steps.append(Step(operation, inputs, output))
        return output
