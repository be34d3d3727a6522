"""Tables for the terminal. `Row` is one line of a comparison, shared by the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from bitstill.report.numbers import count, decimal, metric_label, score, times

KINDS = ("codes", "scales", "levels", "masks", "leftovers", "header")
"""Kinds of bytes in a file, in the order of reports."""


@dataclass(frozen=True)
class Row:
    """One delivered model in a comparison; all figures are of the reloaded file.

    Args:
        name: unique in its comparison; the key of its report and of its latent model.
        method: method, which has its own colour and marker in plots.
        bits: nominal, as text: "32", "4", "ternary".
        metric: metric on the test split; larger is better.
        file_bytes: size of model.safetensors.
        stored_bits: bits per quantized weight with scales and masks; None if nothing is quantized.
        ratio: size of the same network in float32, as a multiple of file_bytes.
        teacher: marks the teacher; a row named "teacher" always is one.
        latency: milliseconds of one run; None if not timed.
    """

    name: str
    method: str
    bits: str
    metric: float
    file_bytes: int
    stored_bits: float | None
    ratio: float
    teacher: bool = False
    latency: float | None = None

    @property
    def is_teacher(self) -> bool:
        """Whether plots and tables mark it as the teacher."""
        return self.teacher or self.name == "teacher"


CODINGS = {"zstd": "entropy-coded", "bitmap": "as bitmap"}
"""Names of codings in reports."""


def rich_table(rows: Sequence[Row], metric_name: str) -> Table:
    """Table of a comparison, one line per delivered model."""
    timed = any(row.latency is not None for row in rows)
    numbers = ("bits", metric_label(metric_name), "file, bytes", "bits/weight", "times smaller")
    table = _table("model", numbers=(*numbers, "ms") if timed else numbers)
    for row in rows:
        figures = [row.bits, score(row.metric, metric_name), count(row.file_bytes), decimal(row.stored_bits), times(row.ratio)]
        _add(table, (row.name, *figures, *([decimal(row.latency)] if timed else [])), style="bold" if row.is_teacher else None)
    return table


def size_table(report: Mapping[str, Any]) -> Table:
    """Table of the bytes of one artifact: quantized layers, float parameters with the reason, then totals by kind.

    Args:
        report: contents of report.json, or the result of `inspect` or a dry run; "size", and "parameters" if known.
    """
    size = report["size"]
    table = _table("layer", "quantizer", numbers=("weights", "bytes", "bits/weight", "entropy"))
    for layer in size["layers"]:
        _add(table, layer_cells(layer))
    for row in report.get("parameters", ()):
        if row["action"] == "float":
            _add(table, _float_cells(row), style="dim")
    table.add_section()
    for kind in KINDS:
        if size["by_kind"].get(kind):
            _add(table, (f"all {kind}", "", "", count(size["by_kind"][kind])), style="dim")
    weights = sum(layer["weights"] for layer in size["layers"])
    stored = decimal(size["stored_bits"]) if weights else ""
    _add(table, ("file", "", count(weights) if weights else "", count(size["file_bytes"]), stored), style="bold")
    table.caption = Text(f"{times(size['ratio'])} smaller than float32{largest_leftover(size)}")
    return table


def _float_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Name, reason, weights and, if stored, bytes and bits per weight of a parameter kept in float."""
    weights = math.prod(row["shape"])
    stored = (count(row["bytes"]), decimal(8 * row["bytes"] / weights)) if row.get("bytes") else ("", "")
    return (row["parameter"], f"float: {row['detail']}", count(weights), *stored)


def recipes_table(recipes: Sequence[Mapping[str, Any]]) -> Table:
    """Table of all recipes, from `recipes.by_name.describe_all`."""
    table = _table("recipe", "teacher", "what it does")
    for recipe in recipes:
        _add(table, (recipe["name"], "yes" if recipe["needs_teacher"] else "no", recipe["summary"]))
    return table


def options_table(recipe: Mapping[str, Any]) -> Table:
    """Table of the options of one recipe, from `recipes.by_name.describe`."""
    table = _table("option", "default", "allowed", "meaning")
    for option in recipe["options"]:
        _add(table, (option["name"], str(option["default"]), option["type"], option["meaning"]))
    table.title = Text(f"{recipe['name']}: {recipe['summary']}")
    table.title_justify = "left"
    return table


def layer_cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Name, quantizer, weights, bytes, bits per weight and entropy of one layer of a size report."""
    coding = layer.get("coding", "none")
    return (
        layer["name"],
        layer["quantizer"] + ("" if coding == "none" else f", {layer['zeros']:.1%} zeros, {CODINGS[coding]}"),
        count(layer["weights"]),
        count(sum(layer["bytes"].values())),
        decimal(layer["bits_per_weight"]),
        decimal(layer["entropy_bits"]),
    )


def largest_leftover(size: Mapping[str, Any]) -> str:
    """Note on the largest float tensor if it is at least a tenth of the file."""
    if not size["largest_leftover"]:
        return ""
    name, size_bytes = size["largest_leftover"]
    share = size_bytes / size["file_bytes"]
    return f"; {name}, kept in float, is {share:.0%} of the file" if share >= 0.1 else ""


def plain_table(texts: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of formatted text: text columns, then number columns."""
    table = _table(*texts, numbers=numbers)
    for row in rows:
        _add(table, row)
    return table


def _table(*texts: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add(table: Table, cells: Sequence[str], style: str | None = None) -> None:
    # Text, not str: names may contain brackets, which rich would read as markup.
    table.add_row(*(Text(cell) for cell in cells), style=style)
