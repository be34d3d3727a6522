"""The HTML report: one self-contained file, written with every artifact and every comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from bitstill.errors import MissingPackageError, need_package
from bitstill.report import sections
from bitstill.report.content import Figure, Page, Section
from bitstill.report.numbers import duration
from bitstill.report.render import plain, styled
from bitstill.report.tables import Row
from bitstill.report.weights import largest_layers

Report = Mapping[str, Any]
HISTOGRAMS = 4


def artifact_page(report: Report, latent: nn.Module) -> str:
    """Page of one artifact.

    Without matplotlib or jinja2 it is plain, with all tables and a note on the missing package: a missing package must not
    fail a finished training run.

    Args:
        report: contents of report.json; all but "size" may be missing.
        latent: trained model with its latent weights; without these there are no histograms.

    Returns:
        A complete HTML document.
    """
    missing = missing_packages()
    recipe, task = report.get("recipe", {}).get("kind"), report.get("task")
    title = f"{recipe} on {task}" if recipe and task else recipe or task or "model"
    parts = [
        Section("Training", "", figures=() if missing else tuple(_stages(report))),
        Section("Weights", "Largest quantized layers.", figures=() if missing else tuple(_histograms(latent))),
    ]
    drawn = [part for part in parts if part.figures]
    where = Section("Bytes", tables=(sections.kinds(report["size"]),)) if missing else _bytes(report)
    warned, tests = sections.warnings(report), sections.details(report)
    first = [section for section in (warned, where, tests) if section is where or section.tables]
    shown = (*first, sections.layers(report), *drawn, sections.settings(report))
    page = Page(title, _subtitle(report), sections.headline(report), shown)
    return styled(page) if missing is None else plain(page, advice(missing))


def comparison_page(
    title: str, rows: Sequence[Row], reports: Mapping[str, Report], latents: Mapping[str, nn.Module], timed: str = ""
) -> str:
    """Page that compares delivered models.

    Args:
        title: title of the page.
        rows: rows of the table, in order.
        reports: contents of report.json by row name; rows without one have no training curves.
        latents: trained models with latent weights by row name; rows without one have no histogram.
        timed: description of how latencies were measured.

    Returns:
        A complete HTML document; plain without matplotlib or jinja2, like `artifact_page`.
    """
    missing = missing_packages()
    name = next((report["delivered"]["metric"] for report in reports.values() if "delivered" in report), "accuracy")
    shown = [Section("Results", tables=(sections.comparison(rows, name),))]
    if missing is None:
        text = "The largest quantized layer of each."
        shown += [
            Section(f"{name.capitalize()} against bytes", figures=tuple(_scatter(rows, name)), wide=True),
            Section(f"{name.capitalize()} against latency", timed, figures=tuple(_against_latency(rows, name)), wide=True),
            Section("Training", figures=tuple(_row_curves(rows, reports, name))),
            Section("Weights", text, figures=tuple(_row_histograms(rows, latents))),
        ]
    sections_shown = [section for section in shown if section.figures or section.tables]
    seconds = sum(report.get("wall_seconds", 0.0) for report in reports.values())
    subtitle = f"{len(rows)} models" + (f", made in {duration(seconds)}." if seconds else ".")
    first = next(iter(reports.values()), {})
    same = {key: first[key] for key in ("versions", "hardware") if key in first}
    sections_shown += [sections.settings(same)] if same else []
    page = Page(title, subtitle, sections.best(rows, name), tuple(sections_shown))
    return styled(page) if missing is None else plain(page, advice(missing))


def missing_packages() -> MissingPackageError | None:
    """Error of the first missing package that the full page needs, or None."""
    try:
        for package in ("jinja2", "matplotlib"):
            need_package(package, extra="all", purpose="the HTML report")
    except MissingPackageError as error:
        return error
    return None


def advice(missing: MissingPackageError) -> str:
    """Note of a plain page on its missing plots."""
    return f"Plots are omitted because {missing.wanted} is not installed. {missing.fix}."


def _stages(report: Report) -> Iterator[Figure]:
    from bitstill.report.plots import curves

    history, metric_name = report.get("history", ()), report.get("delivered", {}).get("metric", "metric")
    for index, (stage, entries) in enumerate(groupby(history, key=lambda entry: str(entry["stage"]))):
        yield curves(stage, list(entries), metric_name, f"stage-{index}")


def _subtitle(report: Report) -> str:
    version = report.get("versions", {}).get("bitstill")
    origin = f"Made in {duration(report['wall_seconds'])}" if "wall_seconds" in report else ""
    origin += f" with bitstill {version}" if origin and version else ""
    return f"{origin}{'. ' if origin else ''}All figures were measured on the delivered file, reloaded from disk."


def _bytes(report: Report) -> Section:
    from bitstill.report.plots import bytes_by_kind

    return Section("Bytes", figures=(bytes_by_kind(report["size"]["by_kind"], "kinds"),), wide=True)


def _histograms(latent: nn.Module) -> Iterator[Figure]:
    from bitstill.report.plots import weight_histogram

    for index, layer in enumerate(largest_layers(latent, HISTOGRAMS)):
        yield weight_histogram(layer, f"weights-{index}")


def _scatter(rows: Sequence[Row], metric_name: str) -> Iterator[Figure]:
    from bitstill.report.scatter import scatter

    if rows:
        yield scatter(rows, metric_name)


def _against_latency(rows: Sequence[Row], metric_name: str) -> Iterator[Figure]:
    from bitstill.report.scatter import LATENCY, scatter

    if any(row.latency for row in rows):
        yield scatter(rows, metric_name, LATENCY)


def _row_curves(rows: Sequence[Row], reports: Mapping[str, Report], metric_name: str) -> Iterator[Figure]:
    from bitstill.report.plots import curves

    histories = {row.name: reports[row.name]["history"] for row in rows if reports.get(row.name, {}).get("history")}
    together = [entry["validation"] for history in histories.values() for entry in history if "validation" in entry]
    for index, (name, history) in enumerate(histories.items()):
        yield curves(name, history, metric_name, f"curves-{index}", terms=False, beside=together)


def _row_histograms(rows: Sequence[Row], latents: Mapping[str, nn.Module]) -> Iterator[Figure]:
    from bitstill.report.plots import weight_histogram

    for index, row in enumerate(rows):
        for layer in largest_layers(latents[row.name], 1) if row.name in latents else ():
            yield weight_histogram(layer, f"weights-{index}", f"{row.name}: {layer.name}")
