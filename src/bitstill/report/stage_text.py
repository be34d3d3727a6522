"""Stages as boxes in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bitstill.report.stage_plan import StagePlan

WIDTH = 80


def stage_text(plans: Sequence[StagePlan]) -> str:
    """The stages from top to bottom, and what is delivered.

    Args:
        plans: of `report.stage_plan.stage_plans`.
    """
    between = f"{'▼':^{WIDTH}}".rstrip()
    boxes = [_box(number, plan) for number, plan in enumerate(plans, 1)]
    learns, delivered = "* learns", "delivered: student, packed"
    return f"\n{between}\n".join(boxes) + f"\n{learns:<{WIDTH - len(delivered)}}{delivered}"


def _box(number: int, plan: StagePlan) -> str:
    left, right = f"┌ {number}. {plan.name} ", f" {plan.heading} ┐"
    lines = [left + "─" * (WIDTH - len(left) - len(right)) + right]
    for line in plan.begin:
        lines += _lines(line, "")
    names = [f"{arrow.teacher} ──▶ {arrow.student}*" for arrow in plan.arrows]
    indent = max((len(name) for name in names), default=0) + 3
    for name, arrow in zip(names, plan.arrows, strict=True):
        lines += _lines(f"{name:<{indent}}{' + '.join(arrow.losses)}", " " * indent)
    return "\n".join([*lines, "└" + "─" * (WIDTH - 2) + "┘"])


def _lines(text: str, indent: str) -> list[str]:
    wrapped = textwrap.wrap(text, WIDTH - 4, subsequent_indent=indent, drop_whitespace=True)
    return [f"│ {line:<{WIDTH - 4}} │" for line in wrapped]
