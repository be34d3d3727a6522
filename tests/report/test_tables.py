from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from bitstill.report.numbers import count, duration, metric, signed, size, times
from bitstill.report.tables import Row, options_table, recipes_table, rich_table, size_table


def printed(table: Table) -> str:
    file = io.StringIO()
    Console(file=file, width=160).print(table)
    return file.getvalue()


def line(text: str, start: str) -> list[str]:
    return next(row for row in text.splitlines() if row.startswith(start)).removeprefix(start).split()


def test_rich_table_has_every_row(rows: list[Row]) -> None:
    text = printed(rich_table(rows, "accuracy"))
    assert "accuracy (%)" in text
    assert line(text, "teacher") == ["32", "97.60", "2,555,600", "–", "1.0×"]
    assert line(text, "distilled, 2 bits") == ["2", "95.50", "6,020", "2.20", "16.0×"]
    assert all(row.name in text for row in rows)


def test_fractions_keep_four_digits() -> None:
    assert "0.5612" in printed(rich_table([Row("a", "b", "1", 0.56123, 10, None, 2.0)], "mcc"))


def test_brackets_are_text_not_markup() -> None:
    assert "[bold]x[/]" in printed(rich_table([Row("[bold]x[/]", "m", "1", 1.0, 10, None, 2.0)], "accuracy"))


def test_size_table_lists_layers_kinds_and_the_file(run_report: dict[str, Any]) -> None:
    text = printed(size_table(run_report))
    assert line(text, "0 ") == ["2-bit", "affine", "2,048", "640", "2.50", "1.61"]
    assert line(text, "all codes") == ["512"]
    assert line(text, "all header") == ["552"]
    assert "masks" not in text
    assert line(text, "file") == ["2,048", "2,640", "2.50"]
    assert "3.7× smaller than float32; 2.weight, kept in float, is 48% of the file" in " ".join(text.split())


def test_size_table_of_a_float_artifact(run_report: dict[str, Any]) -> None:
    run_report["size"] |= {"layers": [], "stored_bits": 0.0, "largest_leftover": None}
    assert line(printed(size_table({"size": run_report["size"]})), "file") == ["2,640"]


def test_catalogue_tables() -> None:
    from bitstill.recipes.by_name import describe, describe_all

    assert "quantized-distillation" in printed(recipes_table(describe_all()))
    assert "temperature" in printed(options_table(describe("quantized-distillation")))


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (count(12288), "12,288"), (size(999_999), "999,999 bytes"), (size(1_234_567), "1.23 MB"), (times(5.96), "6.0×"),
        (signed(-1.214), "−1.21"), (signed(0.001), "±0.00"), (signed(2.0), "+2.00"), (signed(float("nan")), "–"),
        (metric(96.3782, "accuracy"), "96.38 %"), (metric(0.56123, "mcc"), "0.5612"), (metric(float("nan"), "accuracy"), "–"),
        (duration(2.77), "2.8 s"), (duration(59.99), "1 min 00 s"), (duration(252), "4 min 12 s"),
        (duration(11100), "3 h 05 min"),
    ],
)  # fmt: skip
def test_numbers(written: str, wanted: str) -> None:
    assert written == wanted
