"""Plots and tables of latency comparisons."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from bitstill.report.latency import latency_page, latency_tables


@pytest.fixture
def found():
    def row(name, scale, peak):
        points = {
            point: {"ms": ms * scale, "ms_10": 0.9 * ms * scale, "ms_90": 1.5 * ms * scale, "per_second": 1, "ratio": scale}
            for point, ms in (("1 x 16", 4.0), ("8 x 128", 250.0))
        }
        return {
            "name": name,
            "kind": "torch",
            "file_bytes": 1_234_567,
            "load_seconds": 0.25,
            "peak_bytes": peak,
            "points": points,
        }

    rows = [row("teacher", 1.0, 83_000_000), row("student [1 bit]", 0.4, None)]
    return {"rows": rows, "threads": 2, "turns": 40, "hardware": {"cpu": "some"}}


def test_the_terminal_shows_every_network_and_every_point(found):
    console = Console(width=80, record=True, file=io.StringIO())
    for table in latency_tables(found):
        console.print(table)
    text = console.export_text()
    assert re.search(r"student \[1 bit\] +torch +1\.60 \(0\.40\) +100\.00 \(0\.40\)", text)
    assert re.search(r"teacher +torch +1,234,567 +0\.25 +83", text)


def test_the_page_has_a_plot_for_every_point_and_names_the_fastest(found):
    page = latency_page(found)
    assert page.count("<svg") == 2 and "Fastest at 8 x 128" in page and "100.00 ms" in page
    assert "student [1 bit]" in page and "median ratio to the first network" in page


def test_one_network_run_in_two_ways_can_be_told_apart(found):
    found["rows"][1] |= {"name": "teacher", "kind": "torch, kernels"}
    page = latency_page(found)
    assert "teacher in torch, kernels" in page and "1 network, 2 ways to run, timed in turns" in page
