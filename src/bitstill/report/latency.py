"""Results of `bitstill bench`: tables for the terminal, and a page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import rich.table

from bitstill.report import sections
from bitstill.report.content import Fact, Figure, Page, Section, Table
from bitstill.report.numbers import count
from bitstill.report.render import plain, styled
from bitstill.report.tables import plain_table

Timings = Mapping[str, Any]
COSTS = ("bytes", "load, s", "peak, MB")


def latency_tables(timings: Timings) -> tuple[rich.table.Table, rich.table.Table]:
    """Two tables: bytes, loading time and memory; and medians at each point with their ratio to the first network."""
    rows = timings["rows"]
    return (
        plain_table(("network", "runs in"), COSTS, [_costs(row) for row in rows]),
        plain_table(("network", "runs in"), _points(rows), [(row["name"], row["kind"], *_times(row)) for row in rows]),
    )


def latency_page(timings: Timings) -> str:
    """The same as a complete HTML page with plots; plain without matplotlib or jinja2."""
    from bitstill.report.page import advice, missing_packages

    missing, rows = missing_packages(), timings["rows"]
    note = f"Medians of {timings['turns']} turns, {timings['threads']} threads; in brackets, median ratio to the first network."
    costs = Table(("network", "runs in", *COSTS), tuple(_costs(row) for row in rows), texts=2)
    cells = tuple((row["name"], row["kind"], *_times(row)) for row in rows)
    times = Table(("network", "runs in", *_points(rows)), cells, texts=2, note=note)
    shown = [Section("Networks", tables=(costs,)), Section("Latency", tables=(times,))]
    if missing is None:
        shown[1] = replace(shown[1], figures=tuple(_plot(rows, point) for point in rows[0]["points"]))
    shown.append(
        sections.settings({key: timings[key] for key in ("threads", "turns", "versions", "hardware") if key in timings})
    )
    networks = len({row["name"] for row in rows})
    ways = "" if networks == len(rows) else f", {len(rows)} ways to run"
    title = f"{networks} network{'s' if networks > 1 else ''}{ways}, timed in turns"
    page = Page("Latency", title, _fastest(rows), tuple(shown))
    return styled(page) if missing is None else plain(page, advice(missing))


def _costs(row: Mapping[str, Any]) -> tuple[str, ...]:
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
    return row["name"], row["kind"], count(row["file_bytes"]), f"{row['load_seconds']:.2f}", peak


def _points(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{point}, ms" for point in rows[0]["points"])


def _times(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{here['ms']:.2f} ({here['ratio']:.2f})" for here in row["points"].values())


def _fastest(rows: Sequence[Mapping[str, Any]]) -> tuple[Fact, ...]:
    facts = []
    for point in rows[0]["points"]:
        best = min(rows, key=lambda row: row["points"][point]["ms"])
        facts.append(Fact(f"Fastest at {point}", f"{best['points'][point]['ms']:.2f} ms", f"{best['name']} in {best['kind']}"))
    return tuple(facts)


def _plot(rows: Sequence[Mapping[str, Any]], point: str) -> Figure:
    """Medians as dots, ranges from the 10th to the 90th percentile as lines."""
    from bitstill.report.plots import WIDTH
    from bitstill.report.svg import INK, SERIES, canvas, inline

    several = len({row["name"] for row in rows}) < len(rows)
    labels = [f"{row['name']}\n{row['kind']}" if several else row["name"] for row in rows]
    with canvas(WIDTH, 0.55 + (0.38 if several else 0.3) * len(rows), f"latency-{point}") as figure:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            here = row["points"][point]
            axes.plot([here["ms_10"], here["ms_90"]], [place, place], color=SERIES[0], linewidth=2.2, alpha=0.55)
            axes.plot(here["ms"], place, "o", color=SERIES[1], markersize=6)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", colors=INK)
        axes.set_xlabel("milliseconds")
        worded = ", ".join(f"{row['name']} in {row['kind']} {row['points'][point]['ms']:.2f} ms" for row in rows)
        svg = inline(figure, f"Latency at {point}: {worded}")
    return Figure(svg, point, "Dots are medians, lines go from the 10th to the 90th percentile.")
