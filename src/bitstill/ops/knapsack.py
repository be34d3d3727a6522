"""Which things to take when all that is worth having does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def knapsack(gains: Sequence[float], costs: Sequence[int], budget: int, *, steps: int = 20_000) -> tuple[int, ...]:
    """Maximise the sum of gains of what is taken, with costs that add up to at most `budget` (0/1 knapsack).

    By dynamic programming over the budget. Where it is more than `steps`, costs are rounded up to a common unit, so that the
    answer always fits and is at most a few units short of the best.

    Args:
        gains: what each thing is worth; what is worth nothing, or less, is never taken.
        costs: at least 0.
        budget: at least 0.
        steps: into how many units the budget is divided at most.

    Returns:
        Indices of what is taken, ascending.
    """
    unit = max(1, -(-budget // steps))
    capacity = budget // unit
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(gains), capacity + 1), dtype=bool)
    needed = [-(-cost // unit) for cost in costs]
    for index, (gain, need) in enumerate(zip(gains, needed, strict=True)):
        if gain <= 0 or need > capacity:
            continue
        with_it = np.full(capacity + 1, -np.inf)
        with_it[need:] = best[: capacity + 1 - need] + gain
        taken[index] = with_it > best
        best = np.maximum(best, with_it)
    chosen, left = [], capacity
    for index in reversed(range(len(gains))):
        if taken[index, left]:
            chosen.append(index)
            left -= needed[index]
    return tuple(reversed(chosen))
