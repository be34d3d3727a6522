"""Plots of one run as figures of a page: training curves, bytes by kind, weights before and after quantization.

matplotlib is imported only inside the functions; check for it with `need_package` before calling them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitstill.report.axes import by_error, error_scale, loss_scale
from bitstill.report.content import Figure, Key
from bitstill.report.numbers import count, metric, metric_label
from bitstill.report.svg import CARD, INK, MUTED, SERIES, canvas, css, inline, series
from bitstill.report.tables import KINDS
from bitstill.report.weights import LayerWeights, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.1
"""Width of a small plot in inches; three fit side by side on a laptop, one on a phone."""
Entry = Mapping[str, Any]
Point = tuple[float, float]


def curves(
    title: str, entries: Sequence[Entry], metric_name: str, salt: str, *, terms: bool = True, beside: Sequence[float] = ()
) -> Figure:
    """Validation metric above, loss below, over the steps of one or several consecutive stages.

    Args:
        title: title of the plot.
        entries: entries of a report's history.
        metric_name: name of the validation metric.
        salt: see `canvas`.
        terms: also draw the terms of the loss.
        beside: metrics of neighbouring plots, which get the same axis.
    """
    best_entries = [entry for entry in entries if "kept" in entry]
    entries = [entry for entry in entries if {"loss", "validation"} & set(entry)]
    steps, breaks = _steps(entries)
    validation = [(step, entry["validation"]) for step, entry in zip(steps, entries, strict=True) if "validation" in entry]
    losses = _losses(entries, steps, terms)
    panels = [name for name, points in (("validation", validation), ("loss", losses)) if points]
    with canvas(WIDTH, 0.6 + 1.15 * len(panels), salt) as figure:
        grid = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
        for name, axes in zip(panels, grid, strict=False):
            if name == "validation":
                _validation(axes, validation, metric_name, beside)
            else:
                _loss(axes, losses)
            for step in breaks:
                axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        grid[-1].set_xlabel("optimizer steps")
        grid[-1].xaxis.set_major_formatter(lambda value, _position: count(value))
        grid[-1].set_xlim(0, max(1, *steps) * 1.02)
        svg = inline(figure, f"{title}: training curves")
    last = f"Ends at {metric(validation[-1][1], metric_name)} validation {metric_name}. " if validation else ""
    if best_entries:
        value = metric(best_entries[-1]["kept"], metric_name)
        last = f"The weights of step {count(best_entries[-1]['step'])} were kept, at {value} validation {metric_name}. "
    note = last + ("Dashed lines mark the beginning of a stage." if breaks else "")
    return Figure(svg, title, note.strip(), _loss_keys(losses))


def bytes_by_kind(by_kind: Mapping[str, int], salt: str) -> Figure:
    """Bytes of the file by kind, as bars with their shares; drawn for a laptop and for a phone."""
    kinds = {kind: by_kind[kind] for kind in (*KINDS, *sorted(set(by_kind) - set(KINDS))) if by_kind.get(kind)}
    wide, narrow = (_bars(kinds, width, f"{salt}-{width}") for width in (9.6, WIDTH))
    return Figure(wide, "", f"{count(sum(kinds.values()))} bytes in all.", narrow=narrow)


def weight_histogram(layer: LayerWeights, salt: str, title: str = "") -> Figure:
    """Latent weights above as a filled histogram, effective weights below as spikes, over the same values."""
    with canvas(WIDTH, 2.5, salt) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
        shares, edges = np.histogram(layer.latent, bins=60)
        above.stairs(100 * shares / max(1, layer.latent.size), edges, fill=True, color=SERIES[1], alpha=0.75, linewidth=0)
        places, heights, unit = _spikes(layer.effective)
        below.vlines(places, 0, heights, color=SERIES[2], linewidth=1.6 if len(places) < 30 else 1.0)
        for axes, text in ((above, "latent weights (% per bin)"), (below, f"effective weights (% per {unit})")):
            axes.set_title(text)
            axes.set_ylim(bottom=0)
            axes.locator_params(axis="y", nbins=3)
        below.set_xlabel("weight")
        svg = inline(figure, f"{layer.name}: histograms of latent and effective weights")
    zeros = float(np.mean(layer.effective == 0)) if layer.effective.size else 0.0
    distinct = len(np.unique(layer.effective))
    note = f"{layer.quantizer}; {count(layer.latent.size)} weights on {count(distinct)} distinct values"
    note += f", {zeros:.1%} of them zero." if zeros else "."
    return Figure(svg, title or layer.name, note)


def _bars(kinds: Mapping[str, int], width: float, salt: str) -> str:
    total = sum(kinds.values())
    with canvas(width, 0.15 + 0.27 * len(kinds), salt) as figure:
        axes = figure.subplots()
        axes.barh(list(kinds), list(kinds.values()), height=0.62, color=SERIES[1])
        for index, value in enumerate(kinds.values()):
            text = f"{count(value)} ({value / total:.1%})"
            axes.annotate(text, (value, index), (4, 0), textcoords="offset points", va="center")
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlim(0, max(kinds.values(), default=1) * (1.12 if width > WIDTH else 1.5))
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", colors=INK)
        return inline(figure, "Bytes by kind: " + ", ".join(f"{kind} {count(value)}" for kind, value in kinds.items()))


def _steps(entries: Sequence[Entry]) -> tuple[list[int], list[int]]:
    """Step of each entry counted through all stages, and the steps at which later stages begin."""
    steps: list[int] = []
    breaks: list[int] = []
    offset = 0
    for index, entry in enumerate(entries):
        if index and entry["stage"] != entries[index - 1]["stage"]:
            offset = steps[-1]
            breaks.append(offset)
        steps.append(offset + entry["step"])
    return steps, breaks


def _losses(entries: Sequence[Entry], steps: Sequence[int], terms: bool) -> dict[str, list[Point]]:
    """Total loss, then its terms by short names; a single term equals the total and is omitted."""
    names = dict.fromkeys(key for entry in entries for key in entry if key not in ("stage", "step", "loss", "validation"))
    together = any(sum(name in entry for name in names) > 1 for entry in entries)
    shown = {"loss": "loss", **(_short(list(names)) if terms and together else {})}
    points_by_name: dict[str, list[Point]] = {
        short: [(step, entry[name]) for step, entry in zip(steps, entries, strict=True) if name in entry]
        for name, short in shown.items()
    }
    return {name: points for name, points in points_by_name.items() if points}


def _short(names: Sequence[str]) -> dict[str, str]:
    """Term names without the student's, if that is the same for all: "student/KL<-teacher" becomes "KL ← teacher"."""
    students = {name.partition("/")[0] for name in names}
    plain = {name: name.partition("/")[2] or name for name in names} if len(students) == 1 else {n: n for n in names}
    return {name: short.replace("<-", " ← ") for name, short in plain.items()}


def _loss_keys(losses: Mapping[str, Sequence[Point]]) -> tuple[Key, ...]:
    if len(losses) < 2:
        return ()
    return tuple(Key(name, css(_loss_color(index))) for index, name in enumerate(losses))


def _loss_color(index: int) -> str:
    return INK if index == 0 else series(index + 1)


def _validation(axes: Axes, points: Sequence[Point], metric_name: str, beside: Sequence[float]) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=SERIES[1], marker="o", markersize=4, markeredgecolor=CARD, markeredgewidth=0.7, clip_on=False)
    values = [value for value in (*y, *beside) if math.isfinite(value)]
    if by_error(values, metric_name):
        error_scale(axes, values, few=True)
        axes.set_title(f"validation {metric_label(metric_name)}, log scale of the error")
        return
    axes.set_title(f"validation {metric_label(metric_name)}")
    if values:
        margin = 0.12 * (max(values) - min(values)) or 1.0
        axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.locator_params(axis="y", nbins=4)


def _loss(axes: Axes, losses: Mapping[str, Sequence[Point]]) -> None:
    for index, points in reversed(list(enumerate(losses.values()))):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=_loss_color(index), linewidth=1.4 if index == 0 else 0.9)
    logarithmic = loss_scale(axes, [value for points in losses.values() for _step, value in points])
    axes.set_title("training loss, log scale" if logarithmic else "training loss")


def _spikes(values: Values) -> tuple[Values, Values, str]:
    """Values of effective weights, their percentages, and the unit of these; many levels are grouped into 120 bins."""
    places, counts = np.unique(values, return_counts=True)
    unit = "level"
    if len(places) > 40:
        counts, edges = np.histogram(values, bins=120)
        occupied = counts > 0
        places, counts, unit = ((edges[:-1] + edges[1:]) / 2)[occupied], counts[occupied], "bin"
    return places.astype(np.float32), (100 * counts / max(1, values.size)).astype(np.float32), unit
