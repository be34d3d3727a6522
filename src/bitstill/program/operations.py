"""What a delivered network computes, as a short list of operations over named values: the same for every runtime.

A program is planned from an artifact's `config.json` alone. It says which layers there are and in which order, and leaves it to
whoever carries it out how a layer's weights are kept and multiplied. Values are float32. Inside an encoder they have the shape
(tokens, width), where tokens are those of all texts in the batch, one text after the other; inside a convolutional network
(samples, channels, height, width).
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
    """Rows of a table by place in the text, counted from `first`: ids (texts, length) -> (tokens, width).

    With `padding`, an id, only other ids are counted, and that one has place `padding` (RoBERTa).
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
    """Sum of two values of one shape."""


@dataclass(frozen=True)
class Transform:
    """How a value is quantized.

    Args:
        name: under which learned bounds and steps are kept.
        rule: the fields of `QuantizeInput`.
    """

    name: str
    rule: Mapping[str, Any]


@dataclass(frozen=True)
class Quantize:
    """What the codes of a value stand for, of the value's shape.

    Args:
        transform: how.
        width: numbers that make a row: a range per "token" is that of one row.
    """

    transform: Transform
    width: int


@dataclass(frozen=True)
class Attention:
    """softmax(q k^T / sqrt(head width)) v, for each text and head: three of (tokens, heads x head width) -> one.

    With `probabilities`, the softmax is quantized so before it meets v; a row is one of the softmax.
    """

    heads: int
    head_width: int
    probabilities: Transform | None = None


@dataclass(frozen=True)
class FirstToken:
    """Of each text: (tokens, width) -> (texts, width)."""


@dataclass(frozen=True)
class ByText:
    """Each text's tokens on their own: (tokens, width) -> (texts, length, width). Where padding is, anything may stand."""


@dataclass(frozen=True)
class Convolution:
    """Two-dimensional, with zeros around the picture."""

    layer: str
    stride: int
    padding: int


@dataclass(frozen=True)
class BatchNorm:
    """With the statistics of training; `affine` has a weight and a bias too."""

    layer: str
    epsilon: float
    affine: bool


@dataclass(frozen=True)
class MaxPool:
    """Over windows that do not overlap; what is left over at the edge is dropped."""

    window: tuple[int, int]


@dataclass(frozen=True)
class AveragePool:
    """Over windows that do not overlap; what is left over at the edge is dropped."""

    window: tuple[int, int]


@dataclass(frozen=True)
class Mean:
    """Over height and width: (samples, channels)."""


@dataclass(frozen=True)
class Flatten:
    """Everything but the samples into one dimension."""


Operation = (
    Embedding | Positions | Linear | LayerNorm | Activation | Add | Quantize | Attention | FirstToken | ByText
    | Convolution | BatchNorm | MaxPool | AveragePool | Mean | Flatten
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operation on values that are there, giving a new one."""

    operation: Operation
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Input:
    """What a user hands in.

    Args:
        name: as runtimes show it.
        dtype: "int64" or "float32".
        shape: a number, or the name of a dimension that is free.
    """

    name: str
    dtype: Literal["int64", "float32"]
    shape: tuple[int | str, ...]


@dataclass
class Program:
    """Operations in order; the last one's output is the result.

    Args:
        inputs: of the whole.
        result: name under which runtimes show what comes out.
        steps: in order.
    """

    inputs: tuple[Input, ...]
    result: str = "logits"
    steps: list[Step] = field(default_factory=list)

    def do(self, operation: Operation, *inputs: str) -> str:
        """Append an operation; returns the name of its output.

        Raises:
            ArtifactError: there are more than any network has.
        """
        if len(self.steps) >= MOST_STEPS:
            fix = "A number in config.json is wrong; deliver the model again."
            raise ArtifactError(f"at most {MOST_STEPS} operations", given="more", where="config.json", fix=fix)
        output = f"v{len(self.steps)}"
        self.steps.append(Step(operation, inputs, output))
        return output
