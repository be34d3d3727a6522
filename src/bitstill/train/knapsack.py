"""Which things to take when all that is worth having does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def knapsack(gains: Sequence[float], costs: Sequence[int], budget: int, *, steps: int = 20_000) -> tuple[int, ...]:
    """Maximise the sum of gains of what is taken, with costs that add up to at most `budget` (0/1 knapsack).

    Everything that is worth something, where it fits; else by dynamic programming over the budget. Where that is more than
    `steps`, costs are rounded up to a common unit, so that the answer always fits; what then still fits is added, most gain
    first.

    Args:
        gains: finite; what each thing is worth. What is worth nothing, or less, is never taken.
        costs: at least 0.
        budget: at least 0.
        steps: into how many units the budget is divided at most.

    Returns:
        Indices of what is taken, ascending.
    """
    worth = [index for index, gain in enumerate(gains) if gain > 0]
    if sum(costs[index] for index in worth) <= budget:
        return tuple(worth)
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
    rest = budget - sum(costs[index] for index in chosen)
    for index in sorted(set(worth) - set(chosen), key=lambda index: -gains[index]):
        if costs[index] <= rest:
            chosen.append(index)
            rest -= costs[index]
    return tuple(sorted(chosen))
