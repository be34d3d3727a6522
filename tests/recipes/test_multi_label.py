"""Recipes on samples with any number of labels: the student learns, and its delivered form still does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitstill
from bitstill.data.objectives import MultiLabel
from bitstill.data.task import Split, Task, with_class_weights
from bitstill.losses.sigmoid import BinaryCrossEntropy, BinaryKL, SoftBinaryCrossEntropy
from bitstill.recipes import XTC, FineTuning, QuantizedDistillation
from bitstill.recipes.recipe import RunContext

from .encoders import QUIET, encoder

NAMES = ("first", "second", "third")


def split(samples: int, seed: int) -> Split:
    """Twelve numbers; a label holds if the mean of its four is above 0.3."""
    x = torch.randn(samples, 12, generator=torch.Generator().manual_seed(seed))
    return Split({"x": x}, (x.unflatten(1, (3, 4)).mean(2) > 0.3).float())


def task() -> Task:
    return Task(
        "made up", split(512, 1), split(64, 2), split(256, 3), MultiLabel(NAMES), lambda model, batch: model(batch["x"])
    )


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    recipe = FineTuning(epochs=12, lr=1e-2, validations=3)
    result = bitstill.compress(recipe, task(), {"student": network(0)}, settings=QUIET)
    delivered = result.report["delivered"]
    assert delivered["test"] > 90 > delivered["baseline"]["micro F1"]
    return result.models["student"]


@pytest.mark.parametrize("kd_weight", [1.0, 0.5])
def test_a_student_learns_from_its_teacher(teacher, kd_weight):
    recipe = QuantizedDistillation(bits=3, epochs=30, batch_size=32, lr=0.1, kd_weight=kd_weight)
    result = bitstill.compress(recipe, task(), {"teacher": teacher, "student": network(1)}, settings=QUIET)
    delivered = result.report["delivered"]
    assert delivered["test"] > 85 and list(delivered["details"]["per label"]["rows"]) == list(NAMES)


def test_recipes_ask_for_losses_of_labels_that_are_decided_by_themselves():
    objective = MultiLabel(NAMES)
    (stage,) = QuantizedDistillation().stages(RunContext(objective))
    assert [term.loss for term in stage.terms] == [BinaryKL(2.0), BinaryCrossEntropy()]
    (stage,) = XTC().stages(RunContext(objective, {"teacher": encoder(classes=3)}))
    assert stage.terms[0].loss == SoftBinaryCrossEntropy("mean")


def test_class_weights_move_the_decisions_to_the_labels_that_they_favour():
    """The same run with large class weights finds more of the samples that have a label."""
    recall = {}
    for weight in (1.0, 20.0):
        weighted = with_class_weights(task(), (weight,) * 3)
        result = bitstill.compress(
            FineTuning(epochs=2, lr=3e-3, validations=1), weighted, {"student": network(0)}, settings=QUIET
        )
        recall[weight] = [row[1] for row in result.report["delivered"]["details"]["per label"]["rows"].values()]
    assert all(heavy > plain for heavy, plain in zip(recall[20.0], recall[1.0], strict=True))
