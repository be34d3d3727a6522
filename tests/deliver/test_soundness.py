"""Useless results: a warning with the likely cause wherever a reader looks, and an error if strict."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitstill
from bitstill.cli.printing import show_warnings
from bitstill.data import Classification, Regression, Split, Task
from bitstill.deliver.soundness import result_warnings, teacher_warnings
from bitstill.errors import BitstillWarning, MissingPackageError, TrainingError
from bitstill.train import Settings
from bitstill.train.checkpoint import checkpoint_of

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
CLASSES = (X[:, 0] > 0).long()


def task_of(labels: torch.Tensor, objective: Any) -> Task:
    split = Split({"x": X}, labels)
    return Task("signs", split, split, split, objective, forward=lambda model, batch: model(batch["x"]))


def linear(*weights: tuple[float, ...]) -> nn.Linear:
    layer = nn.Linear(4, len(weights))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
        layer.bias.zero_()
    return layer


PERFECT, USELESS = linear((-1.0, 0, 0, 0), (1.0, 0, 0, 0)), linear((0, 0, -1.0, 0), (0, 0, 1.0, 0))


@pytest.mark.parametrize(
    ("teacher", "labels", "objective", "warned"),
    [
        (PERFECT, CLASSES, Classification(2), False),
        (USELESS, CLASSES, Classification(2), True),
        (linear((1.0, 0, 0, 0)), X[:, 0] * 2, Regression(), False),
        (linear((0, 1.0, 0, 0)), X[:, 0] * 2, Regression(), True),
    ],
)
def test_a_teacher_must_be_clearly_better_than_the_constant_answer(teacher, labels, objective, warned):
    messages = teacher_warnings(teacher, task_of(labels, objective))
    assert len(messages) == warned and all("not clearly better than a constant answer" in message for message in messages)


def report(test: float = 90.0, teacher: float = 95.0, columns: tuple[int, int] = (5, 5), **kinds: int) -> dict[str, Any]:
    rows = {"no": [columns[0], 0], "yes": [0, columns[1]]} if min(columns) else {"no": [5, 0], "yes": [5, 0]}
    details = {"confusion": {"columns": ["no", "yes"], "rows": rows}}
    by_kind = {"codes": 1000, "scales": 100, "levels": 0, "masks": 0, "leftovers": 500, "header": 9000, **kinds}
    return {
        "delivered": {"metric": "accuracy", "test": test, "samples": 10, "baseline": {"accuracy": 50.0}, "details": details},
        "teacher": {"test": teacher},
        "size": {"by_kind": by_kind, "file_bytes": sum(by_kind.values()), "largest_leftover": ["embedding.weight", 4000]},
    }


@pytest.mark.parametrize(
    ("figures", "messages"),
    [
        ({}, []),
        ({"test": 72.5}, []),
        ({"test": 72.4}, ["far below its teacher: accuracy 72.40, teacher 95.00, a constant answer 50.00"]),
        ({"test": 50.0, "teacher": 40.0}, ["no better than a constant answer: accuracy 50.00, constant 50.00"]),
        ({"columns": (10, 0)}, ["answers class no to all 10 test samples"]),
        ({"leftovers": 1900}, []),
        ({"leftovers": 4000}, ["5.1 times as large as its codes alone: 4,000 bytes are leftovers.*embedding.weight"]),
        ({"scales": 4000}, ["4,000 bytes are scales. Take larger groups"]),
        ({"codes": 0, "leftovers": 4000}, []),
    ],
)
def test_the_rules_for_a_delivered_model(figures: dict[str, Any], messages: list[str]):
    given = result_warnings(report(**figures))
    assert len(given) == len(messages)
    assert all(re.search(pattern, message) for pattern, message in zip(messages, given, strict=True))


def test_a_run_warns_before_and_after_training_and_a_strict_one_ends_there(tmp_path: Path):
    recipe = bitstill.recipes.QuantizedDistillation(bits=2, steps=1, batch_size=10, lr=1e-6, skip="none")
    models = {"teacher": nn.Sequential(USELESS), "student": nn.Sequential(linear((0, 0, 0, -1.0), (0, 0, 0, 1.0)))}
    task, settings = task_of(CLASSES, Classification(2)), Settings(progress=False)
    with pytest.warns(BitstillWarning) as caught:
        result = bitstill.compress(recipe, task, models, out=tmp_path / "out", settings=settings)
    messages = [str(warning.message) for warning in caught if warning.category is BitstillWarning]
    assert "teacher" in messages[0] and len(messages) > 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["warnings"] == result.report["warnings"] == messages
    for page in ("README.md", "report.html"):
        assert messages[0].split(":")[0] in (tmp_path / "out" / page).read_text()
    for teacher, match in ((USELESS, "^teacher: .* not clearly better"), (PERFECT, "^.*strict: wanted a result without")):
        models["teacher"] = nn.Sequential(teacher)
        with pytest.raises(TrainingError, match=match):
            bitstill.compress(recipe, task, models, out=tmp_path / "strict", settings=settings, strict=True)
        assert not (tmp_path / "strict").exists()
        checkpoint_of(tmp_path / "strict").unlink(missing_ok=True)


def test_the_command_line_prints_one_line_for_each_warning(capsys, monkeypatch):
    import warnings

    with warnings.catch_warnings():
        show_warnings()
        for _ in range(2):
            warnings.warn("The teacher [is] untrained.", BitstillWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: The teacher [is] untrained.\n" * 2


def test_a_tracker_whose_package_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(MissingPackageError, match=r"settings\.trackers: wanted the package of wandb"):
        bitstill.train.settings.accelerator(Settings(trackers=("wandb",)))
