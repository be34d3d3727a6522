"""The task type in `examples/own_task.py`, built from public names only: from training to the page of its artifact."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Poisson, kl_divergence

import bitstill
from bitstill.data.task import baseline, evaluate
from bitstill.losses import Output
from bitstill.recipes import PQK, FineTuning, PostTraining, QuantizedDistillation
from bitstill.train import Settings

ROOT = Path(__file__).parents[2]
QUIET = Settings(progress=False, device="cpu", teacher_precision="float32")


@pytest.fixture(scope="module")
def own() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "examples"))
    yield importlib.import_module("own_task")
    sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def teacher(own) -> bitstill.Result:
    recipe = FineTuning(epochs=30, lr=1e-2, validations=5)
    torch.manual_seed(0)
    return bitstill.compress(recipe, own.visits(), {"student": own.Network()}, settings=QUIET)


def test_its_losses_are_those_of_poisson_distributions(own):
    ours, theirs, counts = torch.randn(20, 1), torch.randn(20, 1), torch.randint(0, 9, (20,)).float()
    likelihood = -Poisson(ours.flatten().exp()).log_prob(counts) - torch.lgamma(counts + 1)
    torch.testing.assert_close(own.PoissonLoss()(Output(ours), None, counts, 0.0), likelihood.mean())
    divergence = kl_divergence(Poisson(theirs.exp()), Poisson(ours.exp())).mean()
    torch.testing.assert_close(own.PoissonDivergence()(Output(ours), Output(theirs), counts, 0.0), divergence)


def test_it_learns_and_the_student_after_it(own, teacher):
    task = own.visits()
    constant = baseline(task, task.test)["deviance explained"]
    assert teacher.report["delivered"]["test"] > constant + 50
    torch.manual_seed(1)
    recipe = QuantizedDistillation(bits=4, epochs=30, lr=0.02)
    models = {"teacher": teacher.models["student"], "student": own.Network()}
    result = bitstill.compress(recipe, task, models, settings=QUIET)
    delivered = result.report["delivered"]
    assert delivered["metric"] == "deviance explained" and delivered["test"] == evaluate(result.model, task, task.test)
    assert delivered["test"] > constant + 40 and delivered["details"]["counts"]["columns"] == ["mean count", "mean rate"]
    page = (result.folder / "report.html").read_text()
    assert "mean rate" in page and "deviance explained" in page
    assert json.loads((result.folder / "config.json").read_text())["problem_type"] == "regression"


@pytest.mark.parametrize("recipe", [PQK(epochs=1, warmup_epochs=1, mutual_epochs=1, teacher_norms=False), PostTraining(4)])
def test_recipes_that_never_heard_of_it_run(own, teacher, recipe):
    models = {"student": teacher.models["student"]}
    result = bitstill.compress(recipe, own.visits(), models, settings=QUIET)
    assert result.report["delivered"]["metric"] == "deviance explained"


def test_it_imports_public_packages_alone():
    names = {
        node.module
        for node in ast.walk(ast.parse((ROOT / "examples" / "own_task.py").read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert {name for name in names if name and name.startswith("bitstill")} == {"bitstill.data", "bitstill.losses"}


def test_a_kind_of_task_costs_one_file():
    """Nothing outside its file asks which objective it is: recipes, training and delivery use only the protocol."""
    kinds = {"Classification", "MultiLabel", "Regression"}
    source = ROOT / "src" / "bitstill"
    for folder in ("recipes", "train", "deliver", "run", "report", "artifact", "exporters", "runtime", "program", "hf", "cli"):
        for path in sorted((source / folder).rglob("*.py")):
            if path.name == "example_run.py":  # draws recipes for a classification task
                continue
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not names & kinds, f"{path}: {names & kinds}"
