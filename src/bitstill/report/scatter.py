"""Accuracy against bytes or latency, the plots by which compressed models are judged. Up is better, left is less."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitstill.report.axes import by_error, error_scale, latency_scale, size_scale
from bitstill.report.content import Figure, Key
from bitstill.report.labels import Box, Point, leader, place_labels
from bitstill.report.numbers import metric_label, score
from bitstill.report.svg import CARD, INK, MUTED, canvas, css, inline, series
from bitstill.report.tables import Row

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes
    from matplotlib.text import Text

MARKERS = {
    "o": "M8 3.5a4.5 4.5 0 1 0 .01 0z",
    "s": "M4 4h8v8H4z",
    "^": "M8 3l5 9.5H3z",
    "D": "M8 2.5L13.5 8L8 13.5L2.5 8z",
    "v": "M8 13L3 3.5h10z",
    "p": "M8 3l5 3.8-1.9 6H4.9L3 6.8z",
    "*": "M8 2l1.6 4.2 4.4.2-3.4 2.8 1.2 4.3L8 11l-3.8 2.5 1.2-4.3L2 6.4l4.4-.2z",
}
"""Markers of matplotlib, and the same as SVG paths in a 16 by 16 box for legends. The star is reserved for the teacher."""
RADIUS = 4.2


@dataclass(frozen=True)
class Cost:
    """Quantity on the horizontal axis.

    Args:
        of: its value for a row; None or 0 omits the row.
        scale: function that sets up the axis.
        name: its name in words, for the text alternative.
        lines: join the rows of one method by a line.
        worded: its value for a row, in words.
        note: note below the plot.
    """

    of: Callable[[Row], float | None]
    scale: Callable[[Axes, Sequence[float]], None]
    name: str
    lines: bool
    worded: Callable[[Row], str]
    note: str


BYTES = Cost(
    lambda row: row.file_bytes,
    size_scale,
    "file size",
    True,
    lambda row: f"{row.file_bytes:,} bytes",
    "Up is better, left is smaller; both figures are of the delivered file.",
)
LATENCY = Cost(
    lambda row: row.latency,
    latency_scale,
    "latency",
    False,
    lambda row: f"{row.latency:,.2f} ms",
    "Up is better, left is faster.",
)


def scatter(rows: Sequence[Row], metric_name: str, cost: Cost = BYTES) -> Figure:
    """Scatter plot of all rows with a finite metric, drawn for a laptop and for a phone."""
    shown = [row for row in rows if math.isfinite(row.metric) and cost.of(row)]
    if not shown:
        return Figure("", "", "No row has a finite metric.")
    spread = by_error([row.metric for row in shown], metric_name)
    drawn = [_draw(shown, metric_name, spread, size, cost) for size in ((9.6, 5.0), (4.2, 5.2))]
    note = cost.note
    if spread:
        note += " The vertical axis is logarithmic in the error, so that differences near the top are visible."
    return Figure(drawn[0], "", note, _keys(shown), narrow=drawn[1])


def short_label(row: Row) -> str:
    """Name of the row without its method, which colour and marker already show: "4 bits"."""
    rest = row.name.removeprefix(row.method).lstrip(" ,:-/")
    return rest or row.name


def _draw(rows: Sequence[Row], metric_name: str, spread: bool, size: tuple[float, float], cost: Cost) -> str:
    places = {row.name: float(cost.of(row) or 0.0) for row in rows}
    with canvas(*size, f"{cost.name.replace(' ', '-')}-{size[0]}") as figure:
        axes = figure.subplots()
        styles = _styles(rows)
        for method, (color, marker) in styles.items():
            method_rows = sorted(
                (row for row in rows if row.method == method and not row.is_teacher), key=lambda row: places[row.name]
            )
            x, y = [places[row.name] for row in method_rows], [row.metric for row in method_rows]
            if cost.lines:
                axes.plot(x, y, color=color, linewidth=0.9, alpha=0.45)
            axes.plot(x, y, marker, color=color, markersize=7.5, markeredgecolor=CARD, markeredgewidth=0.8)
        for row in rows:
            if row.is_teacher:
                axes.axhline(row.metric, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
                axes.plot(
                    places[row.name], row.metric, "*", color=INK, markersize=12, markeredgecolor=CARD, markeredgewidth=0.8
                )
        cost.scale(axes, list(places.values()))
        axes.margins(y=0.1)
        if spread:
            error_scale(axes, [row.metric for row in rows])
        axes.set_title(f"test {metric_label(metric_name)}")
        _label(figure, axes, rows, styles, places)
        worded = "; ".join(f"{row.name}: {score(row.metric, metric_name)} at {cost.worded(row)}" for row in rows)
        return inline(figure, f"{metric_name} against {cost.name}. {worded}")


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method except the teacher's, in order of appearance."""
    markers = [marker for marker in MARKERS if marker != "*"]
    methods = dict.fromkeys(row.method for row in rows if not row.is_teacher)
    return {
        method: (series(index), markers[(index + index // len(markers)) % len(markers)]) for index, method in enumerate(methods)
    }


def _keys(rows: Sequence[Row]) -> tuple[Key, ...]:
    keys = [Key(name, css(c), MARKERS[m]) for name, (c, m) in _styles(rows).items()]
    return (*keys, Key("teacher", css(INK), MARKERS["*"])) if any(row.is_teacher for row in rows) else tuple(keys)


def _label(
    figure: matplotlib.figure.Figure,
    axes: Axes,
    rows: Sequence[Row],
    styles: Mapping[str, tuple[str, str]],
    places: Mapping[str, float],
) -> None:
    """Place the labels, after the layout has fixed the positions of the points."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    scale = 72 / figure.dpi
    points: list[Point] = [tuple(scale * axes.transData.transform((places[row.name], row.metric))) for row in rows]
    texts = [_text(figure, row, styles) for row in rows]
    sizes = [_measured(text, scale) for text in texts]
    extent = axes.get_window_extent()
    frame = Box(*(scale * edge for edge in (extent.x0, extent.y0, extent.x1, extent.y1)))
    by_method = [[p for p, row in zip(points, rows, strict=True) if row.method == m and not row.is_teacher] for m in styles]
    lines = [pair for group in by_method for pair in zip(sorted(group), sorted(group)[1:], strict=False)]
    lines += [
        ((frame.left, point[1]), (frame.right, point[1])) for point, row in zip(points, rows, strict=True) if row.is_teacher
    ]
    width, height = figure.get_size_inches() * 72
    for text, point, box in zip(texts, points, place_labels(points, sizes, frame, lines, RADIUS), strict=True):
        text.set_position((box.left / width, box.bottom / height))
        line = leader(point, box, RADIUS)
        if line is not None:
            _leader(figure, line, (width, height))


def _text(figure: matplotlib.figure.Figure, row: Row, styles: Mapping[str, tuple[str, str]]) -> Text:
    color = INK if row.is_teacher else styles[row.method][0]
    return figure.text(0, 0, short_label(row), color=color, ha="left", va="bottom")


def _measured(text: Text, scale: float) -> Point:
    box = text.get_window_extent()
    return scale * box.width, scale * box.height


def _leader(figure: matplotlib.figure.Figure, line: tuple[Point, Point], size: Point) -> None:
    from matplotlib.lines import Line2D

    (x0, y0), (x1, y1) = line
    x, y = (x0 / size[0], x1 / size[0]), (y0 / size[1], y1 / size[1])
    figure.add_artist(Line2D(x, y, color=MUTED, linewidth=0.6, transform=figure.transFigure))
