"""Diagram of stages as SVG: boxes are models, arrows are losses, with one panel per stage from top to bottom."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from html import escape

from bitstill.report.stage_plan import Arrow, StagePlan
from bitstill.report.svg import CARD, INK, MUTED, RULE, SERIES, css

WIDTH, MARGIN, LINE, BOX = 720, 16, 18, 30
"""Pixels: width of the image, margin inside a panel, line height of text, height of a model's box."""
LEFT, RIGHT, BOX_WIDTH = 32, 556, 132
"""Left edges of the boxes of teachers and of students, and the width of a box."""
GAP = 26
"""Space between two panels."""


def stage_svg(plans: Sequence[StagePlan]) -> str:
    """Draw stages as an SVG element that follows the page's theme.

    Args:
        plans: output of `report.stage_plan.stage_plans`.
    """
    top, panels = 2.0, list[str]()
    for number, plan in enumerate(plans, 1):
        height = _height(plan)
        panels += _panel(number, plan, top, height)
        top += height + GAP
        if number < len(plans):
            panels.append(_down(WIDTH / 2, top - GAP + 3, top - 3))
    panels.append(_text(WIDTH / 2, top - 4, "delivered: student, packed", INK, "middle", bold=True))
    words = escape(". ".join(f"{plan.name}: {plan.heading}" for plan in plans))
    head = f'<svg viewBox="0 0 {WIDTH} {top + 8:g}" role="img" aria-label="{words}" font-size="13" font-family="sans-serif">'
    return "\n".join([head, *panels, "</svg>"])


def _height(plan: StagePlan) -> float:
    rows = sum(_row_height(arrow) for arrow in plan.arrows)
    return 2 * MARGIN + LINE * (1 + len(plan.begin)) + rows


def _row_height(arrow: Arrow) -> float:
    return max(BOX, LINE * len(_losses(arrow)) + 8) + 12


def _losses(arrow: Arrow) -> list[str]:
    """Losses, wrapped to the length of the arrow."""
    return textwrap.wrap(" + ".join(arrow.losses), 56)


def _panel(number: int, plan: StagePlan, top: float, height: float) -> Iterator[str]:
    yield _box(2, top, WIDTH - 4, height, css(CARD), css(RULE))
    line = top + MARGIN + 10
    yield _text(MARGIN + 2, line, f"{number}. {plan.name}", INK, bold=True)
    yield _text(WIDTH - MARGIN - 2, line, plan.heading, MUTED, "end")
    for words in plan.begin:
        line += LINE
        yield _text(MARGIN + 2, line, words, MUTED)
    row = line + 14
    for arrow in plan.arrows:
        yield from _row(arrow, row)
        row += _row_height(arrow)


def _row(arrow: Arrow, top: float) -> Iterator[str]:
    height = _row_height(arrow) - 12
    middle = top + height / 2
    teacher_color = css(MUTED) if arrow.teacher == "labels" else css(INK)
    yield _box(LEFT, middle - BOX / 2, BOX_WIDTH, BOX, "none", teacher_color)
    yield _text(LEFT + BOX_WIDTH / 2, middle + 4.5, arrow.teacher, INK, "middle")
    yield _box(RIGHT, middle - BOX / 2, BOX_WIDTH, BOX, css(SERIES[1]), css(SERIES[1]))
    yield _text(RIGHT + BOX_WIDTH / 2, middle + 4.5, arrow.student, CARD, "middle", bold=True)
    start, end = LEFT + BOX_WIDTH + 8, RIGHT - 8
    lines = _losses(arrow)
    above = (len(lines) + 1) // 2
    for index, line in enumerate(lines):
        baseline = middle - 6 - LINE * (above - 1 - index) if index < above else middle + LINE * (index - above + 1)
        yield _text((start + end) / 2, baseline, line, INK, "middle")
    yield f'<path d="M{start} {middle:g}H{end - 6}" stroke="{css(MUTED)}" stroke-width="1.2"/>'
    yield f'<path d="M{end} {middle:g}l-9 -4.5v9z" fill="{css(MUTED)}"/>'


def _down(x: float, top: float, bottom: float) -> str:
    shaft = f'<path d="M{x:g} {top:g}V{bottom - 6:g}" stroke="{css(MUTED)}" stroke-width="1.2"/>'
    return f'{shaft}<path d="M{x:g} {bottom:g}l-4.5 -9h9z" fill="{css(MUTED)}"/>'


def _box(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" stroke="{stroke}"/>'


def _text(x: float, y: float, words: str, color: str, anchor: str = "start", *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{css(color)}"{weight}>{escape(words)}</text>'
