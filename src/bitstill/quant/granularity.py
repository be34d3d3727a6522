"""Granularity: the weights that share a scale.

A weight of any shape is first read as a matrix of *rows*, then each row is cut into groups:

    granularity     rows x row length          group          scale shape
    PerTensor       1 x numel                  the row        (1, 1)
    PerChannel      out x (numel / out)        the row        (out, 1)
    PerGroup(k)     out x (numel / out)        k in a row     (out, ceil(row length / k))
    Bucket(k)       1 x numel                  k, flat        (1, ceil(numel / k))

`PerGroup` is the default for exports: its groups never cross an output row. `Bucket` is the flat bucket of Polino et al.
(2018), which does. A row that does not divide evenly is padded; padding is excluded from all statistics.
This file handles only shapes: no tensors, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitstill.constraints import Count, check_fields
from bitstill.errors import SpecError


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: weight of any shape -> scale (1, 1)."""


@dataclass(frozen=True)
class PerChannel:
    """One scale per output row: weight (out, ...) -> scale (out, 1)."""


@dataclass(frozen=True)
class PerGroup:
    """One scale per `size` consecutive weights of an output row: weight (out, ...) -> scale (out, ceil(row / size))."""

    size: Count

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Bucket:
    """One scale per `size` consecutive weights of the flattened tensor (Polino et al. 2018, section 3.1).

    Weight of any shape -> scale (1, ceil(numel / size)). A tensor smaller than `size` is one bucket of its own length.
    """

    size: Count = 256

    def __post_init__(self) -> None:
        check_fields(self)


Granularity = PerTensor | PerChannel | PerGroup | Bucket


@dataclass(frozen=True)
class Grid:
    """Division of a tensor into groups: `rows` rows of `length`, each in `groups` groups of `size`."""

    rows: int
    length: int
    groups: int
    size: int

    @property
    def padding(self) -> int:
        """Padding elements at the end of each row."""
        return self.groups * self.size - self.length

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Shape of the scales: (rows, groups per row)."""
        return self.rows, self.groups


def grid_of(shape: Sequence[int], granularity: Granularity) -> Grid:
    """Grid of a weight of `shape` under `granularity`.

    Raises:
        SpecError: if the shape is empty or has a zero dimension.
    """
    numel = math.prod(shape)
    if not shape or numel == 0:
        raise SpecError(
            "a weight with at least one dimension and one element",
            given=f"shape {tuple(shape)}",
            where="granularity",
            fix="Leave this module out with `ignore`.",
        )
    match granularity:
        case PerTensor():
            return Grid(1, numel, 1, numel)
        case Bucket(size):
            size = min(size, numel)
            return Grid(1, numel, -(-numel // size), size)
        case PerChannel():
            return Grid(shape[0], numel // shape[0], 1, numel // shape[0])
        case PerGroup(size):
            length = numel // shape[0]
            size = min(size, length)
            return Grid(shape[0], length, -(-length // size), size)
