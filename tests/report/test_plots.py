from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from bitstill.model.lifecycle import freeze, prepare
from bitstill.quant.rules import Compression, Ternary
from bitstill.report.axes import by_error, error_scale
from bitstill.report.plots import curves
from bitstill.report.scatter import scatter, short_label
from bitstill.report.svg import canvas
from bitstill.report.tables import Row
from bitstill.report.weights import largest_layers


def test_effective_weights_are_those_that_are_delivered() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Conv2d(2, 3, 3))
    prepare(model, Compression(weight=Ternary()))
    frozen = freeze(model)
    found = largest_layers(model.train(), 2)
    assert [layer.name for layer in found] == ["1", "0"]
    for layer in found:
        module = frozen.get_submodule(layer.name)
        assert isinstance(module.weight, torch.Tensor)
        assert np.array_equal(layer.effective, module.weight.flatten().numpy())
        assert np.array_equal(layer.latent, model.get_submodule(layer.name).weight.detach().flatten().numpy())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("narrow", [False, True])
def test_every_point_is_labelled_and_labels_do_not_overlap(narrow: bool) -> None:
    rows = [Row("teacher", "float", "32", 97.6, 255_600, None, 1.0)]
    rows += [
        Row(f"{method}, {bits} bits", method, str(bits), 96 + index / 10, 8000 + 10 * index + 900 * bits, 2.0, 6.0)
        for index, method in enumerate(("post-training", "distilled", "differentiable"))
        for bits in (1, 2, 3, 4, 8)
    ]
    figure = scatter(rows, "accuracy")
    found = re.findall(
        r'<text style="([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', figure.narrow if narrow else figure.svg
    )
    labels = [(float(x), float(y), text) for style, x, y, text in found if "text-anchor: start" in style or "bits" in text]
    assert sum(text.endswith("bits") for *_place, text in labels) == 15
    assert "teacher" in [text for *_place, text in labels]
    # Text is set in 8.5 points; even a narrow font takes at least half an em per character.
    for (x0, y0, one), (x1, y1, other) in itertools.combinations(labels, 2):
        assert abs(y0 - y1) >= 8 or x0 + 3.5 * len(one) <= x1 or x1 + 3.5 * len(other) <= x0


def test_short_labels_leave_out_the_method() -> None:
    assert short_label(Row("distilled, 4 bits", "distilled", "4", 1, 1, None, 1)) == "4 bits"
    assert short_label(Row("float", "float", "32", 1, 1, None, 1)) == "float"
    assert short_label(Row("student, distilled", "float", "32", 1, 1, None, 1)) == "student, distilled"


def test_methods_differ_in_colour_or_marker() -> None:
    rows = [Row(f"m{i}", f"m{i}", "4", 90 + i / 10, 1000 + 100 * i, None, 1.0) for i in range(30)]
    keys = [(key.color, key.marker) for key in scatter(rows, "accuracy").legend]
    assert len(set(keys)) == 30


def test_error_axis_spreads_the_top_and_holds_no_error_at_all() -> None:
    assert by_error([10.0, 99.0], "accuracy")
    assert not by_error([95.0, 99.0], "accuracy")
    assert not by_error([0.1, 0.9], "mcc")
    with canvas(4, 3, "test") as figure:
        axes = figure.subplots()
        error_scale(axes, [10.0, 90.0, 99.0, 100.0])
        places = axes.transData.transform([(0, value) for value in (10.0, 90.0, 99.0, 100.0)])[:, 1]
        assert np.isfinite(places).all()
        assert (np.diff(places) > 0).all()
        assert places[2] - places[1] > 0.8 * (places[1] - places[0])


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("values", [[10.0, 100.0], [0.0, 99.5, 100.0], [60.0, 80.0], [10.0, 99.99], [80.0, 96.0]])
def test_ticks_of_the_error_axis_do_not_collide(values: list[float], few: bool) -> None:
    with canvas(4, 1.1 if few else 4, "test") as figure:
        axes = figure.subplots()
        error_scale(axes, values, few=few)
        low, high = axes.get_ylim()
        ticks = sorted(tick for tick in axes.get_yticks() if low <= tick <= high)
        assert len(ticks) >= 2
        places = 72 / figure.dpi * axes.transData.transform([(0, tick) for tick in ticks])[:, 1]
        assert (np.diff(places) > 8.5).all()


def test_the_step_that_was_kept_is_told_and_not_drawn_as_a_loss() -> None:
    history = [
        {"stage": "a", "step": n, "loss": 3.0 - n, "student/KL<-t": 1.0, "student/CE": 2.0, "validation": 80.0 + n}
        for n in (1, 2)
    ]
    figure = curves("a", [*history, {"stage": "a", "step": 1, "kept": 81.0}], "accuracy", "salt")
    assert figure.note == "The weights of step 1 were kept, at 81.00 % validation accuracy."
    assert [key.name for key in figure.legend] == ["loss", "KL ← t", "CE"]
    assert curves("a", history, "accuracy", "salt").note == "Ends at 82.00 % validation accuracy."
    two = [{"stage": "a", "step": step, "loss": 2.0, "student/KL": 1.5, "student/MSE": 0.5} for step in (1, 2)]
    decided = {"stage": "a", "step": 0, "decided": {"ChooseTernary": {"ternary": ["words"]}}}
    assert [key.name for key in curves("a", [decided, *two], "accuracy", "salt").legend] == ["loss", "KL", "MSE"]
