"""The 0/1 knapsack problem, by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def knapsack(gains: Sequence[float], costs: Sequence[int], budget: int, *, steps: int = 20_000) -> tuple[int, ...]:
    """Choose items of maximal total gain whose costs add up to at most `budget` (0/1 knapsack).

    If all items of positive gain fit, they are chosen; otherwise dynamic programming over the budget decides. A budget above
    `steps` is divided into units and costs are rounded up to them, so that the choice always fits; items that still fit then
    are added, highest gain first.

    Args:
        gains: finite value of each item. An item of gain 0 or less is never chosen.
        costs: cost of each item, at least 0.
        budget: at least 0.
        steps: maximal number of units into which the budget is divided.

    Returns:
        Indices of the chosen items, ascending.
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
