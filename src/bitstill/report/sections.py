"""Sections of a page from report.json. Every part of a report but "size" may be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bitstill.report.content import Fact, Section, Table
from bitstill.report.numbers import (
    MISSING,
    count,
    decimal,
    digits_of,
    duration,
    metric,
    metric_label,
    score,
    signed,
    size,
    times,
)
from bitstill.report.tables import KINDS, Row, largest_leftover, layer_cells

Report = Mapping[str, Any]
LONG = 14
"""Tables with more rows are folded."""
DETAILS = {
    "per class": ("class", "In percent."),
    "per label": ("label", "In percent."),
    "confusion": ("true \\ predicted", "Number of samples by true class (rows) and predicted class (columns)."),
}
"""First heading and note of the tables of built-in objectives; those of others have neither."""
NEAR = 3
"""Percentage points below the teacher within which a small model counts as nearly as good."""


def headline(report: Report) -> tuple[Fact, ...]:
    """Headline figures of an artifact, each with its reference."""
    delivered, teacher, size_ = report.get("delivered"), report.get("teacher"), report["size"]
    facts = []
    if delivered is not None:
        name, note = delivered["metric"], f"on {count(delivered['samples'])} test samples"
        if teacher is not None:
            unit, digits = " points" if name == "accuracy" else "", digits_of(teacher["test"], name)
            note = (
                f"teacher {metric(teacher['test'], name)}, {signed(delivered['test'] - teacher['test'], digits)}{unit}; {note}"
            )
        facts.append(Fact(f"test {name}", metric(delivered["test"], name), note))
    note = "model.safetensors"
    if teacher is not None:
        note += f"; teacher {size(teacher['file_bytes'])}, {times(teacher['file_bytes'] / size_['file_bytes'])} as much"
    facts.append(Fact("file", size(size_["file_bytes"]), note))
    facts.append(Fact("smaller", times(size_["ratio"]), f"than its own {size(size_['float_bytes'])} in float32"))
    weights = sum(layer["weights"] for layer in size_["layers"])
    if weights:
        stored = f"{decimal(size_['stored_bits'])} stored, with scales; {count(weights)} quantized weights"
        facts.append(Fact("bits per weight", decimal(size_["nominal_bits"]), stored))
    else:
        facts.append(Fact("bits per weight", "float", "nothing is quantized"))
    return tuple(facts)


def warnings(report: Report) -> Section:
    """What the run has warned of, with the likely causes."""
    messages = tuple((message,) for message in report.get("warnings", ()))
    return Section("Warnings", tables=(Table((), messages),) if messages else ())


def details(report: Report) -> Section:
    """All metrics with those of the best constant answer, and the objective's own tables, such as the confusion matrix."""
    delivered = report.get("delivered", {})
    metrics, constant = delivered.get("metrics", {}), delivered.get("baseline", {})
    tables = []
    if metrics:
        rows = tuple((name, decimal(value), decimal(constant.get(name))) for name, value in metrics.items())
        tables.append(Table(("metric", "test", "best constant answer"), rows, 1))
    for title, table in delivered.get("details", {}).items():
        first, note = DETAILS.get(title, ("", ""))
        cells = tuple((name, *map(_figure, figures)) for name, figures in table["rows"].items())
        tables.append(Table((first, *table["columns"]), cells, 1, title.capitalize(), note, folded=len(cells) > LONG))
    return Section("Test split", "", tuple(tables))


def layers(report: Report) -> Section:
    """All quantized layers, and all parameters kept in float with the reason."""
    size_, parameters = report["size"], report.get("parameters", ())
    shapes = {row["parameter"]: _shape(row["shape"]) for row in parameters}
    rows = [(cells[0], shapes.get(f"{cells[0]}.weight", MISSING), *cells[1:]) for cells in map(layer_cells, size_["layers"])]
    weights = sum(layer["weights"] for layer in size_["layers"])
    total = count(sum(sum(layer["bytes"].values()) for layer in size_["layers"]))
    header = ("layer", "shape", "quantizer", "weights", "bytes", "bits/weight", "entropy, bits")
    tables = []
    if rows:
        last = ("all layers", "", "", count(weights), total, decimal(size_["stored_bits"]), "")
        note = "Bits per weight count codes, scales and masks. Entropy is the lower bound for the codes alone."
        strong, long = frozenset({len(rows)}), len(rows) > 3 * LONG
        tables.append(Table(header, (*rows, last), 3, "Quantized", note, strong, long, minor=frozenset({1})))
    float_rows = [row for row in parameters if row["action"] != "quantized"]
    if float_rows:
        leftovers = size_["by_kind"].get("leftovers", 0)
        note = f"With buffers such as running statistics they take {count(leftovers)} bytes{largest_leftover(size_)}."
        cells = tuple(
            (row["parameter"], _shape(row["shape"]), row["detail"], count(math.prod(row["shape"]))) for row in float_rows
        )
        head = ("parameter", "shape", "why", "values")
        tables.append(Table(head, cells, 3, "Kept in float", note, folded=len(cells) > LONG, minor=frozenset({3})))
    return Section("Layers", "" if rows else "Nothing is quantized: every parameter is stored in float.", tuple(tables))


def kinds(size_: Mapping[str, Any]) -> Table:
    """Bytes by kind with their shares, for the page without plots."""
    sizes = [(kind, size_["by_kind"][kind]) for kind in KINDS if size_["by_kind"].get(kind)]
    rows = [(kind, count(value), f"{value / size_['file_bytes']:.1%}") for kind, value in sizes]
    return Table(
        ("kind", "bytes", "share"), (*rows, ("file", count(size_["file_bytes"]), "100.0%")), strong=frozenset({len(rows)})
    )


def settings(report: Report) -> Section:
    """Resolved recipe and settings, and the environment."""
    names = ("recipe", "settings", "storage")
    tables = [
        Table((), _flat(report[name]), 2, f"Recipe: {report[name]['kind']}" if name == "recipe" else name.capitalize())
        for name in names
        if report.get(name)
    ]
    rows = [*_flat(report.get("versions", {})), *_flat(report.get("hardware", {}))]
    if "wall_seconds" in report:
        rows.insert(0, ("wall time", duration(report["wall_seconds"])))
    if rows:
        tables.append(Table((), tuple(rows), 2, "Environment"))
    return Section("How it was made", "", tuple(tables), compact=True)


def comparison(rows: Sequence[Row], metric_name: str) -> Table:
    """Table of a comparison, with each row's difference from the teacher."""
    teacher = next((row for row in rows if row.is_teacher), None)
    header = ["model", "method", "bits", metric_label(metric_name), "file, bytes", "bits/weight", "times smaller"]
    timed = any(row.latency is not None for row in rows)
    header += ["ms"] if timed else []
    lines = []
    for row in rows:
        figures = [score(row.metric, metric_name), count(row.file_bytes), decimal(row.stored_bits), times(row.ratio)]
        if teacher is not None:
            figures.insert(
                1, MISSING if row is teacher else signed(row.metric - teacher.metric, digits_of(teacher.metric, metric_name))
            )
        figures += [decimal(row.latency)] if timed else []
        lines.append((row.name, row.method, row.bits, *figures))
    if teacher is not None:
        header.insert(4, "to teacher")
    strong = frozenset(index for index, row in enumerate(rows) if row.is_teacher)
    note = "Measured on the delivered files, reloaded. Bits per weight are of the quantized weights, with scales and masks; "
    note += "times smaller is relative to the same network in float32."
    return Table(tuple(header), tuple(lines), 2, note=note, strong=strong, minor=frozenset({1}))


def best(rows: Sequence[Row], metric_name: str) -> tuple[Fact, ...]:
    """Headline of a comparison: the teacher, the best quantized row, and the smallest that is nearly as good as the teacher."""
    teacher = next((row for row in rows if row.is_teacher), None)
    packed = [row for row in rows if row.stored_bits is not None and math.isfinite(row.metric)]
    near = [row for row in packed if teacher is not None and metric_name == "accuracy" and row.metric >= teacher.metric - NEAR]
    facts = [] if teacher is None else [Fact("teacher", metric(teacher.metric, metric_name), size(teacher.file_bytes))]
    if packed:
        first = max(packed, key=lambda row: (row.metric, -row.file_bytes))
        facts.append(_fact("most accurate quantized", first, teacher, metric_name))
    if near:
        smallest = min(near, key=lambda row: (row.file_bytes, -row.metric))
        facts.append(_fact(f"smallest within {NEAR} points of the teacher", smallest, teacher, metric_name))
    return tuple(facts)


def _fact(label: str, row: Row, teacher: Row | None, metric_name: str) -> Fact:
    note = f"{row.name}, {size(row.file_bytes)}"
    if teacher is not None:
        note += f", {times(teacher.file_bytes / row.file_bytes)} smaller than the teacher"
    return Fact(label, metric(row.metric, metric_name), note)


def _flat(values: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Nested options by dotted names; a nested object is listed by its class name."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [(f"{prefix}{name}", str(value["kind"]))] if "kind" in value else []
            rows += _flat(value, f"{prefix}{name}.")
        elif name != "kind":
            rows.append((f"{prefix}{name}", _text(value)))
    return tuple(rows)


def _text(value: object) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _figure(value: float | int | None) -> str:
    return count(value) if isinstance(value, int) else decimal(value)


def _shape(shape: Sequence[int]) -> str:
    return "\u00a0×\u00a0".join(str(length) for length in shape) or "scalar"
