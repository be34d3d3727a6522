"""Memory planning: offsets of a plan's values in one arena, in which later values reuse the memory of dead ones."""

from __future__ import annotations

from typing import NamedTuple

from bitstill.runtime.structs import Step, Sync
from bitstill.runtime.values import Plan

FOREVER = 1 << 30


class _Block(NamedTuple):
    """Memory in use before step `until`."""

    begin: int
    end: int
    until: int


def place_values(plan: Plan) -> None:
    """Set the offset of every value to the lowest address that is free during its life, and the total bytes."""
    plan.result.last_read = len(plan.steps)
    in_use: list[_Block] = []
    for value in plan.values:
        in_use = [block for block in in_use if block.until > value.written]
        begin = _first_gap(in_use, value.bytes)
        in_use.append(_Block(begin, begin + value.bytes, _free_from(plan.steps, value.last_read)))
        plan.offsets.append(begin)
        plan.bytes = max(plan.bytes, begin + value.bytes)


def _first_gap(in_use: list[_Block], size: int) -> int:
    begin = 0
    for block in sorted(in_use):
        if begin + size <= block.begin:
            break
        begin = max(begin, block.end)
    return begin


def _free_from(steps: list[Step], last_read: int) -> int:
    """First step that may overwrite a value: until the next synchronization other threads may still read it."""
    later = range(last_read + 1, len(steps))
    return next((number for number in later if steps[number].sync == Sync.ALWAYS), FOREVER)
