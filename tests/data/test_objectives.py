"""The contract of every objective, and its treatment of outputs and labels, against scikit-learn and plain formulas."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from bitstill.data.metrics import class_counts
from bitstill.data.objective import Objective
from bitstill.data.objectives import Classification, MeanStates, MultiLabel, Regression
from bitstill.data.objectives.classification import CONFUSION
from bitstill.data.task import Split, Task, baseline, with_class_weights
from bitstill.errors import DataError, SpecError
from bitstill.losses.logits import KL, CrossEntropy, MeanSquaredError, SoftCrossEntropy
from bitstill.losses.sigmoid import BinaryCrossEntropy, BinaryKL, SoftBinaryCrossEntropy
from bitstill.losses.taps import Output
from bitstill.recipes import PQK, FineTuning, QuantizedDistillation
from bitstill.recipes.recipe import RunContext

NAMES = ("a", "b", "c")
CASES: dict[str, tuple[Objective, Tensor, int]] = {
    "classification": (Classification(3, NAMES), torch.tensor([0, 2, 1, 1, 2, 1]), 3),
    "two classes": (Classification(2, decides="Matthews correlation"), torch.tensor([0, 1, 1, 1, 0, 1]), 2),
    "multi-label": (MultiLabel(NAMES), torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]), 3),
    "regression": (Regression(), torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 3.0]), 1),
    "mean states": (MeanStates(), torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), 5),
}
every = pytest.mark.parametrize("case", CASES)
taught = pytest.mark.parametrize("case", [case for case in CASES if case != "mean states"])


def task(objective: Objective, labels: Tensor) -> Task:
    part = Split({"x": torch.zeros(len(labels), 1)}, labels)
    return Task("tiny", part, part, part, objective, lambda model, batch: model(batch["x"]))


@every
def test_one_of_the_metrics_decides_and_the_rest_is_plain_data(case):
    objective, labels, width = CASES[case]
    outputs = torch.randn(6, width, generator=torch.Generator().manual_seed(1))
    metrics = objective.metrics(outputs, labels)
    assert objective.decides in metrics and all(isinstance(value, float) for value in metrics.values())
    assert objective.width in (None, width) and len(objective.label_names) in (0, width)
    details = {title: table.to_json() for title, table in objective.report(outputs, labels).items()}
    assert json.loads(json.dumps(details)) == details
    assert all(len(row) == len(table["columns"]) for table in details.values() for row in table["rows"].values())
    json.dumps(objective.head())
    objective.check_labels(labels, "here")


@every
def test_a_constant_answer_has_a_score(case):
    objective, labels, _ = CASES[case]
    metrics = baseline(task(objective, labels), task(objective, labels).test)
    assert metrics.keys() == objective.metrics(torch.zeros(6, CASES[case][2]), labels).keys()
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_constant_answers():
    value = {
        case: baseline(task(objective, labels), task(objective, labels).test) for case, (objective, labels, _) in CASES.items()
    }
    assert value["classification"]["accuracy"] == 50.0 and value["two classes"]["Matthews correlation"] == 0.0
    assert value["regression"]["R squared"] == pytest.approx(0.0, abs=1e-5) and value["mean states"]["linear CKA"] == 0.0
    assert value["multi-label"]["exact match"] == pytest.approx(100 / 6)  # a and c hold for at least half of the samples


@taught
@pytest.mark.parametrize("kind", ["kl", "cross-entropy"])
def test_a_teacher_is_imitated_best_by_itself(case, kind):
    objective, _, width = CASES[case]
    teacher = torch.randn(6, width, generator=torch.Generator().manual_seed(2))
    student = teacher.clone().requires_grad_()
    loss = objective.imitation_loss(kind, 2.0, "batchmean")
    assert loss.needs_teacher or isinstance(loss, MeanSquaredError)
    loss(Output(student), Output(teacher), torch.zeros(6), 0.0).backward()
    assert float(student.grad.abs().max()) < 1e-6
    other = (teacher + 1).requires_grad_() if width == 1 else teacher.flip(0).clone().requires_grad_()
    loss(Output(other), Output(teacher), torch.zeros(6), 0.0).backward()
    assert float(other.grad.abs().max()) > 1e-3


@taught
def test_labels_teach(case):
    objective, labels, width = CASES[case]
    outputs = torch.zeros(6, width, requires_grad=True)
    optimizer, loss = torch.optim.SGD([outputs], lr=5.0), objective.label_loss()
    for _ in range(200):
        optimizer.zero_grad()
        loss(Output(outputs), None, labels, 0.0).backward()
        optimizer.step()
    assert objective.metrics(outputs.detach(), labels)[objective.decides] == pytest.approx(100.0)


def test_each_family_has_its_losses():
    kinds: dict[str, Any] = {case: objective for case, (objective, _, _) in CASES.items()}
    assert kinds["classification"].label_loss() == CrossEntropy()
    assert kinds["classification"].imitation_loss("kl", 3.0, "mean") == KL(3.0, "mean")
    assert kinds["classification"].imitation_loss("cross-entropy", reduction="mean") == SoftCrossEntropy("mean")
    assert kinds["multi-label"].label_loss() == BinaryCrossEntropy()
    assert kinds["multi-label"].imitation_loss("kl", 3.0) == BinaryKL(3.0)
    assert kinds["multi-label"].imitation_loss("cross-entropy") == SoftBinaryCrossEntropy()
    assert kinds["regression"].imitation_loss("kl", 3.0) == kinds["regression"].label_loss() == MeanSquaredError()


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@given(pairs)
def test_figures_per_class_are_those_of_scikit_learn(rows):
    predicted, actual = (np.array(column) for column in zip(*rows, strict=True))
    outputs, labels = torch.nn.functional.one_hot(torch.tensor(predicted), 4).float(), torch.tensor(actual)
    objective = Classification(4, ("p", "q", "r", "s"))
    tables, present = objective.report(outputs, labels), sorted({*predicted.tolist(), *actual.tolist()})
    assert [list(row) for row in tables["confusion"].rows.values()] == sk.confusion_matrix(
        actual, predicted, labels=range(4)
    ).tolist()
    expected = sk.precision_recall_fscore_support(actual, predicted, labels=range(4), zero_division=0)
    figures = np.array(list(tables["per class"].rows.values()))
    np.testing.assert_allclose(figures.T, np.array(expected) * np.array([[100], [100], [100], [1]]))
    macro = sk.f1_score(actual, predicted, labels=present, average="macro", zero_division=0)
    assert objective.metrics(outputs, labels)["macro F1"] == pytest.approx(100 * macro)


def test_many_classes_cost_no_table_of_their_square():
    labels = torch.tensor([0, 999_999, 7])
    objective = Classification(1_000_000)
    counts = class_counts(torch.tensor([0, 7, 7]), labels, objective.classes)
    assert [each[[0, 7, 999_999]].tolist() for each in counts] == [[1, 1, 0], [1, 2, 0], [1, 1, 1]]
    report = Classification(CONFUSION + 1).report(torch.eye(CONFUSION + 1), torch.arange(CONFUSION + 1))
    assert list(report) == ["per class"]


@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=20))
def test_multi_label_figures_are_those_of_scikit_learn(rows):
    table = np.array(rows)
    predicted, actual = table[:, :3], table[:, 3:]
    objective = MultiLabel(NAMES)
    outputs, labels = torch.from_numpy(predicted).float() - 0.5, torch.from_numpy(actual).float()
    metrics = objective.metrics(outputs, labels)
    for average in ("micro", "macro"):
        score = sk.f1_score(actual, predicted, average=average, zero_division=0)
        assert metrics[f"{average} F1"] == pytest.approx(100 * score)
    assert metrics["exact match"] == pytest.approx(100 * sk.accuracy_score(actual, predicted))
    expected = sk.precision_recall_fscore_support(actual, predicted, zero_division=0)
    figures = np.array(list(objective.report(outputs, labels)["per label"].rows.values()))
    np.testing.assert_allclose(figures.T, np.array(expected) * np.array([[100], [100], [100], [1]]))


def test_a_label_holds_from_its_threshold_on():
    outputs = torch.logit(torch.tensor([[0.29, 0.31, 0.5]]))
    assert MultiLabel(NAMES, threshold=0.3).predictions(outputs).tolist() == [[False, True, True]]
    assert MultiLabel(NAMES).predictions(torch.tensor([[-1e-6, 0.0, 1e-6]])).tolist() == [[False, True, True]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_balanced_weights_are_those_of_scikit_learn(values):
    weights = Classification(5).balanced_weights(torch.tensor(values))
    present = sorted(set(values))
    expected = compute_class_weight("balanced", classes=np.array(present), y=values)
    assert [weights[index] for index in present] == pytest.approx(expected.tolist())
    assert all(weights[index] == 0 for index in range(5) if index not in present)


def test_weights_reach_the_loss_on_labels():
    objective, labels, _ = CASES["classification"]
    weighted = with_class_weights(task(objective, labels), "balanced").objective
    assert weighted.label_loss() == CrossEntropy(class_weights=(2.0, 2 / 3, 1.0))
    outputs = torch.randn(6, 3)
    each = -outputs.log_softmax(1)[torch.arange(6), labels]
    scale = torch.tensor([2.0, 2 / 3, 1.0])[labels]
    torch.testing.assert_close(weighted.label_loss()(Output(outputs), None, labels, 0), (scale * each).sum() / scale.sum())
    several = with_class_weights(task(*CASES["multi-label"][:2]), "balanced").objective
    assert several.label_loss() == BinaryCrossEntropy((1.0, 5.0, 0.5))
    assert with_class_weights(task(objective, labels), (1, 2, 3)).objective.class_weights == (1, 2, 3)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.0, 0.0, 0.0), (1e308, 1e308, 1.0)])
@pytest.mark.parametrize("case", ["classification", "multi-label"])
def test_other_weights_are_refused(case, weights):
    with pytest.raises(SpecError, match="class_weights: wanted 3 class weights, some above 0"):
        with_class_weights(task(*CASES[case][:2]), weights)


@pytest.mark.parametrize("case", ["regression", "mean states"])
def test_without_classes_there_is_nothing_to_weigh(case):
    objective, labels, _ = CASES[case]
    with pytest.raises(SpecError, match=f"wanted an objective with classes, got {type(objective).__name__}"):
        with_class_weights(task(objective, labels), "balanced")


REFUSED = {
    "a metric": (lambda: Classification(3, decides="F1"), SpecError, "Classification: wanted a known metric, got 'F1'"),
    "a metric of labels": (lambda: MultiLabel(NAMES, "accuracy"), SpecError, "MultiLabel: wanted a known metric"),
    "a metric of values": (lambda: Regression("accuracy"), SpecError, "Regression: wanted a known metric"),
    "names": (lambda: Classification(3, ("a",)), SpecError, "wanted 3 names of classes, got 1 names"),
    "one class": (lambda: Classification(1), SpecError, "wanted at least two classes, got 1"),
    "a name twice": (
        lambda: Classification(3, ("a", "b", "a")),
        SpecError,
        "Classification: wanted different names, got 'a' twice",
    ),
    "a label twice": (lambda: MultiLabel(("a", "a")), SpecError, "MultiLabel: wanted different names, got 'a' twice"),
    "a column of classes": (
        lambda: task(Classification(3), torch.tensor([[0], [2]])),
        DataError,
        r"wanted labels \(samples,\), got shape \(2, 1\). .*labels.flatten\(\)",
    ),
    "a column of values": (lambda: task(Regression(), torch.ones(2, 1)), DataError, r"wanted labels \(samples,\), got shape"),
    "no label": (lambda: MultiLabel(()), SpecError, "at least one label"),
    "a number that is no class": (lambda: task(Classification(2), torch.tensor([0, 2])), DataError, "int64 labels from 0 to 1"),
    "classes for labels": (
        lambda: task(MultiLabel(NAMES), torch.tensor([0, 1])),
        DataError,
        r"float labels 0 or 1 \(samples, 3\)",
    ),
    "fewer labels": (lambda: task(MultiLabel(NAMES), torch.zeros(2, 2)), DataError, r"got float32 \(2, 2\)"),
    "half a label": (lambda: task(MultiLabel(NAMES), torch.full((2, 3), 0.5)), DataError, "with other values"),
    "several values": (lambda: task(Regression(), torch.zeros(2, 2)), DataError, r"labels \(samples,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (FineTuning(), "wanted an objective with a loss on labels, got MeanStates, which has none"),
        (PQK(), "wanted an objective with a loss on labels, got MeanStates, which has none"),
        (QuantizedDistillation(), "got MeanStates for the loss 'kl'"),
    ],
)
def test_a_recipe_that_an_objective_cannot_serve_names_both(recipe, message):
    with pytest.raises(SpecError, match=message):
        recipe.stages(RunContext(MeanStates()))
