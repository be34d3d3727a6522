from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from bitstill.data.objectives import Classification
from bitstill.model.lifecycle import freeze, prepare
from bitstill.quant.rules import Compression, Uniform
from bitstill.report.page import artifact_page, comparison_page
from bitstill.report.tables import Row
from tests.report.html_checks import Document, check_self_contained

HOSTILE = "<script>alert('x')</script> & $a^{ \"q\" </svg>"


def test_artifact_page_shows_every_figure(run_report: dict[str, Any], latent: nn.Module) -> None:
    document = check_self_contained(artifact_page(run_report, latent))
    for words in (
        "QuantizedDistillation on digits", "4 min 12 s", "96.38 %", "teacher 97.59 %, −1.21 points", "1,497 test samples",
        "2,640 bytes", "teacher 2.56 MB", "3.7×", "9,640 bytes", "2.00", "2.50 stored", "codes", "512 (19.4%)", "552 (20.9%)",
        "validation accuracy (%)", "training loss", "optimizer steps", "latent weights", "effective weights",
        "CrossEntropy", "KL ← teacher", "granularity PerGroup", "granularity.size 64", "augment yes", "gpu none",
        "2.weight, kept in float, is 48% of the file",
    ):  # fmt: skip
        assert words in document.text, words
    assert ["0", "32 × 64", "2-bit affine", "2,048", "640", "2.50", "1.61"] in _plain(document)
    assert ["2.weight", "10 × 32", "not selected", "320"] in _plain(document)


def test_artifact_page_shows_what_was_taken_for_what(run_report: dict[str, Any], latent: nn.Module) -> None:
    outputs = nn.functional.one_hot(torch.tensor([0, 1, 1, 2]), 3).float()
    objective, labels = Classification(3, ("cat", "dog", HOSTILE)), torch.tensor([0, 1, 0, 2])
    run_report["delivered"] |= {
        "metrics": objective.metrics(outputs, labels),
        "baseline": {"accuracy": 50.0},
        "details": {title: table.to_json() for title, table in objective.report(outputs, labels).items()},
    }
    document = check_self_contained(artifact_page(run_report, latent))
    rows = _plain(document)
    assert ["accuracy", "75.00", "50.00"] in rows and ["cat", "100.00", "50.00", "66.67", "2"] in rows
    assert ["cat", "1", "1", "0"] in rows and ["dog", "0", "1", "0"] in rows


def test_artifact_page_is_the_same_twice(run_report: dict[str, Any], latent: nn.Module) -> None:
    assert artifact_page(run_report, latent) == artifact_page(run_report, latent)


@pytest.mark.parametrize(
    "absent", ["teacher", "history", "parameters", "delivered", "wall_seconds", "versions", "recipe", "settings", "hardware"]
)
def test_artifact_page_without_an_optional_part(absent: str, run_report: dict[str, Any], latent: nn.Module) -> None:
    del run_report[absent]
    assert "2,640 bytes" in check_self_contained(artifact_page(run_report, latent)).text


def test_artifact_page_needs_only_sizes(run_report: dict[str, Any]) -> None:
    document = check_self_contained(artifact_page({"size": run_report["size"]}, nn.Linear(2, 2)))
    assert "3.7×" in document.text


def test_float_artifact_without_layers(run_report: dict[str, Any]) -> None:
    run_report["size"] |= {"layers": [], "nominal_bits": 0.0, "stored_bits": 0.0, "largest_leftover": None}
    document = check_self_contained(artifact_page(run_report, nn.Linear(2, 2)))
    assert "nothing is quantized" in document.text
    assert "latent weights" not in document.text
    assert "0.00 stored" not in document.text


def test_a_frozen_model_adds_no_histograms(run_report: dict[str, Any], latent: nn.Module) -> None:
    assert "latent weights" not in Document(artifact_page(run_report, freeze(latent))).text


def test_at_most_four_histograms_largest_first(run_report: dict[str, Any]) -> None:
    model = nn.Sequential(*(nn.Linear(4, width) for width in (3, 60, 20, 40, 10, 50)))
    prepare(model, Compression(weight=Uniform(bits=2)))
    text = Document(artifact_page(run_report, model)).text
    assert text.count("latent weights (% per bin)") == 4
    places = [text.index(f"{count} weights on") for count in (240, 200, 160, 80)]
    assert places == sorted(places)


def test_names_are_escaped_everywhere(run_report: dict[str, Any], latent: nn.Module) -> None:
    report = copy.deepcopy(run_report)
    report["task"] = report["recipe"]["bits"] = report["delivered"]["metric"] = HOSTILE
    report["size"]["layers"][0]["name"] = report["size"]["largest_leftover"][0] = HOSTILE
    report["size"]["by_kind"][HOSTILE] = 7
    for row in report["parameters"]:
        row["parameter"] = row["detail"] = HOSTILE
    for entry in report["history"]:
        entry["stage"], entry[HOSTILE] = HOSTILE, 1.0
    document = Document(artifact_page(report, latent))
    assert "script" not in document.tags
    assert document.text.count("alert('x')") >= 8
    rows = [Row(HOSTILE, HOSTILE, HOSTILE, 90.0, 1000, 2.0, 3.0), Row("_b", "_b", "4", 80.0, 2000, 2.0, 3.0)]
    document = Document(comparison_page(HOSTILE, rows, {HOSTILE: report}, {HOSTILE: latent}))
    assert "script" not in document.tags
    assert document.text.count("alert('x')") >= 6


@pytest.mark.parametrize("history", [
    [{"stage": "a", "step": 1, "loss": 0.0}],
    [{"stage": "a", "step": 1, "validation": 100.0}],
    [{"stage": "a", "step": 1, "loss": -1.0, "validation": math.nan},
     {"stage": "a", "step": 2, "loss": 3.0, "validation": 1.0}],
    [{"stage": "a", "step": 5, "validation": value} for value in (0.0, 100.0)],
])  # fmt: skip
def test_odd_histories(history: list[dict[str, Any]], run_report: dict[str, Any], latent: nn.Module) -> None:
    run_report["history"] = history
    check_self_contained(artifact_page(run_report, latent))


def test_constant_weights_and_masked_weights(run_report: dict[str, Any], latent: nn.Module) -> None:
    torch.nn.init.zeros_(latent[0].weight)  # type: ignore[index, arg-type]
    assert "100.0% of them zero" in check_self_contained(artifact_page(run_report, latent)).text


def test_comparison_shows_every_row(rows: list[Row], reports: dict[str, Any], latent: nn.Module) -> None:
    latents = dict.fromkeys(reports, latent)
    document = check_self_contained(comparison_page("Digits & more", rows, reports, latents))
    lines = _plain(document)
    assert ["model", "method", "bits", "accuracy (%)", "to teacher", "file, bytes", "bits/weight", "times smaller"] in lines
    assert ["teacher", "float", "32", "97.60", "–", "2,555,600", "–", "1.0×"] in lines
    assert ["distilled, 2 bits", "distilled", "2", "95.50", "−2.10", "6,020", "2.20", "16.0×"] in lines
    assert {row.name for row in rows} <= {line[0] for line in lines}
    assert document.text.count("Ends at 90.00 % validation accuracy") == 3
    assert document.text.count("latent weights (% per bin)") == 3
    assert "smallest within 3 points of the teacher 95.25 % distilled, 1 bits, 3,010 bytes, 849.0× smaller" in document.text
    assert "logarithmic in the error" in document.text
    for label in ("teacher", "4 bits", "2 bits", "1 bits"):
        assert label in document.text


def test_comparison_without_teacher_reports_or_models(rows: list[Row]) -> None:
    document = check_self_contained(comparison_page("t", rows[1:], {}, {}))
    assert "to teacher" not in document.text
    check_self_contained(comparison_page("t", [], {}, {}))


def test_rows_without_a_finite_metric_stay_in_the_table(rows: list[Row]) -> None:
    broken = Row("broken", "post-training", "1", math.nan, 100, None, 2.0)
    document = check_self_contained(comparison_page("t", [*rows, broken], {}, {}))
    assert ["broken", "post-training", "1", "–", "–", "100", "–", "2.0×"] in _plain(document)
    check_self_contained(comparison_page("t", [broken], {}, {}))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_an_optional_package_tables_remain(
    package: str, monkeypatch: pytest.MonkeyPatch, run_report: dict[str, Any], rows: list[Row], latent: nn.Module
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    run_report["task"] = HOSTILE
    document = check_self_contained(artifact_page(run_report, latent))
    assert package in document.text
    assert "pip install 'bitstill[all]'" in document.text
    assert "96.38 %" in document.text
    assert ["codes", "512", "19.4%"] in _plain(document)
    assert ["0", "32 × 64", "2-bit affine", "2,048", "640", "2.50", "1.61"] in _plain(document)
    document = check_self_contained(comparison_page(HOSTILE, rows, {}, {}))
    assert {row.name for row in rows} <= {line[0] for line in _plain(document)}


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch, run_report: dict[str, Any], latent: nn.Module) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("bitstill.report.plots.bytes_by_kind", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        artifact_page(run_report, latent)


def _plain(document: Document) -> list[list[str]]:
    return [[cell.replace("\xa0", " ") for cell in row] for row in document.cells]
