"""Plans: the values and steps of a program, as the C library runs them."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitstill.program.operations import Embedding, Positions
from bitstill.runtime.structs import ALIGN, Step, aligned

CODED_ROW = 12
"""Bytes for each row of codes: scale, zero point and shift."""


@dataclass(frozen=True)
class Shape:
    """Rows of numbers: `pixels` rows for each token, text or sample.

    Args:
        per: what there are as many of as the batch has: "token", "text" or "sample".
        width: numbers in a row.
        height, across: of an image in pixels; 1 elsewhere.
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
    """A value's shape, and its life.

    Args:
        shape: of its rows.
        codes: whether it holds codes rather than floats.
        written: the step that computes it.
        last_read: the step that reads it last.
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
    """Steps for the C library, and what they need.

    Args:
        steps: in order.
        values: of all steps; the last step's is the result.
        offsets: of the values, in bytes for each token or sample.
        bytes: of all values, for each token or sample.
        indices: operations that look up rows, by place in the list of indices.
        padding_counts: whether results depend on padded tokens too.
    """

    steps: list[Step] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    bytes: int = 0
    indices: list[Embedding | Positions] = field(default_factory=list)
    padding_counts: bool = False

    @property
    def result(self) -> Value:
        """What the last step computes."""
        return self.values[int(self.steps[-1].output)]
