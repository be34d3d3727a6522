"""Plans: values and steps for the C library."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitstill.program.operations import Embedding, Positions
from bitstill.runtime.structs import ALIGN, Step, aligned

CODED_ROW = 12
"""Bytes for each row of codes: scale, zero point and shift."""


@dataclass(frozen=True)
class Shape:
    """Shape of a value: `pixels` rows per token, text or sample.

    Args:
        per: unit of the batch: "token", "text" or "sample".
        width: numbers in a row.
        height, across: size of an image in pixels; 1 otherwise.
    """

    per: str
    width: int
    height: int = 1
    across: int = 1

    @property
    def pixels(self) -> int:
        """Rows for each token, text or sample."""
        return self.height * self.across


@dataclass
class Value:
    """A value: its shape and lifetime.

    Args:
        shape: shape of its rows.
        codes: whether it holds codes rather than floats.
        written: step that computes it.
        last_read: last step that reads it.
        readers: operations of the program that read it.
    """

    shape: Shape
    codes: bool = False
    written: int = 0
    last_read: int = 0
    readers: int = 0

    @property
    def bytes(self) -> int:
        """For each token, text or sample, aligned."""
        size = self.shape.pixels * (self.shape.width + CODED_ROW if self.codes else 4 * self.shape.width)
        return aligned(size) + 4 * ALIGN


@dataclass
class Plan:
    """Steps for the C library with their values.

    Args:
        steps: steps in order.
        values: values of all steps; the last step's is the result.
        offsets: offsets of the values, in bytes per token or sample.
        bytes: bytes of all values, per token or sample.
        indices: operations that look up rows, in the order of the list of indices.
        padding_counts: whether results depend on padding.
    """

    steps: list[Step] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    bytes: int = 0
    indices: list[Embedding | Positions] = field(default_factory=list)
    padding_counts: bool = False

    @property
    def result(self) -> Value:
        """Value of the last step."""
        return self.values[int(self.steps[-1].output)]
