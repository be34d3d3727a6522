"""Pairwise combinations of options: every pair of values occurs, in far fewer cases than the full cross product."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(*options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value per option, in which any two values of different options occur together.

    Greedy, in the order of the values: each row begins with an uncovered pair, and takes for every other option the value that
    covers most uncovered pairs. The number of rows is at least the number of pairs of the two longest options.
    """
    sizes = [range(len(values)) for values in options]
    if len(options) < 2:
        return list(itertools.product(*options))
    columns = list(itertools.combinations(range(len(options)), 2))
    missing = {(a, i, b, j): None for a, b in columns for i in sizes[a] for j in sizes[b]}
    rows = []
    while missing:
        a, i, b, j = next(iter(missing))
        row = {a: i, b: j}
        for option in range(len(options)):
            if option not in row:
                row[option] = max(
                    sizes[option], key=lambda value: sum(_pair(option, value, *other) in missing for other in row.items())
                )
        for one, other in itertools.combinations(row.items(), 2):
            missing.pop(_pair(*one, *other), None)
        rows.append(tuple(values[row[option]] for option, values in enumerate(options)))
    return rows


def _pair(a: int, i: int, b: int, j: int) -> tuple[int, int, int, int]:
    return (a, i, b, j) if a < b else (b, j, a, i)
