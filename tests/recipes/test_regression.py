"""Every recipe on a regression task: no classification loss may remain in it unnoticed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import bitstill
from bitstill.data.objectives import Classification
from bitstill.data.task import evaluate, predict
from bitstill.errors import DataError, TrainingError
from bitstill.losses.features import AttentionScoreMSE, FeatureMSE
from bitstill.losses.logits import KL, CrossEntropy, MeanSquaredError, SoftCrossEntropy
from bitstill.recipes import DifferentiableQuantization, QuantizedDistillation
from bitstill.recipes.by_name import RECIPES
from bitstill.recipes.recipe import RunContext
from bitstill.run.models import needed_roles
from bitstill.run.rehearsal import rehearse
from bitstill.train.loop import train
from bitstill.train.optim import AdamW
from bitstill.train.stage import Stage, Term
from bitstill.train.step import TrainingStep, check_gradients
from bitstill.train.teachers import Teachers

from .encoders import QUIET, bert, encoder, minus_squared_error, task

DATA = task(regression=True)
SHORT = {"steps": 3, "batch_size": 16}
CASES: dict[str, dict[str, Any]] = {
    "binarybert": {**SHORT, "width": 1.0, "validations": 1},
    "binarybert, not split": {**SHORT, "width": 1.0, "split": False, "joint": True, "validations": 1},
    "differentiable-quantization": {**SHORT, "float_epochs": 0.5, "granularity": bitstill.quant.PerChannel()},
    "differentiable-quantization by labels": {**SHORT, "float_epochs": 0, "kd_weight": 0, "share_points": True},
    "differentiable-quantization under the teacher": {**SHORT, "teacher": "teacher", "float_epochs": 0, "kd_weight": 0.5},
    "fine-tuning": {**SHORT, "lr": 1e-3},
    "post-training": {},
    "pqk": {"epochs": 0.1, "warmup_epochs": 0.1, "mutual_epochs": 0.1, "batch_size": 16, "optimizer": "adamw", "lr": 1e-3},
    "quantized-distillation": {**SHORT, "float_epochs": 0.5, "lr": 1e-3},
    "quantized-distillation by labels": {**SHORT, "kd_weight": 0, "lr": 1e-3},
    "xtc": {**SHORT, "validations": 1},
    "xtc, fewer layers": {**SHORT, "layers": 2, "label_weight": 0.5, "schedule": "three", "validations": 1},
    "xtc, ternary on the way": {**SHORT, "progressive": (8, "ternary"), "validations": 1},
}


def recipe_of(case: str) -> Any:
    return RECIPES[case.split(",")[0].split(" ")[0]](**CASES[case])


def networks(recipe: Any) -> dict[str, nn.Module]:
    made = {"teacher": encoder(1, classes=1), "student": encoder(2, classes=1)}
    return {role: made[role] for role in needed_roles(recipe, {})}


def test_there_is_a_case_for_every_recipe():
    assert {case.split(",")[0].split(" ")[0] for case in CASES} == set(RECIPES) - {"general-distillation"}, (
        "which has no labels"
    )


@pytest.mark.parametrize("case", CASES)
def test_every_term_has_a_gradient_in_every_stage(case):
    recipe = recipe_of(case)
    models: dict[str, nn.Module] = networks(recipe)
    stages = recipe.stages(RunContext(DATA.objective, models, frozenset({"teacher"}) if recipe.needs_teacher else frozenset()))
    rehearse(stages, models, {"task": DATA})
    for stage in stages:
        for action in stage.begin:
            action.apply(models, DATA, 0)
        if not stage.terms:
            continue
        if stage.pruning is not None:  # masks as at the end of training
            for number in range(10):
                stage.pruning.before(number, 10, models[stage.pruning.model])
        batch = DATA.train.take(torch.arange(16))
        step = TrainingStep(stage, models, DATA).train()
        loss, values, norms = step(batch, Teachers(stage, models, DATA, torch.device("cpu"), False)(batch), 0.0, True)
        assert len(norms) == len(values) == len(stage.terms), "none hides another of its name"
        if stage.name != "float student" or "xtc" not in case:  # it begins as its teacher: only other layers differ
            assert all(float(norm) > 0 for norm in norms.values()), (stage.name, norms)
        loss.backward()
        check_gradients({name: float(norm) for name, norm in norms.items()}, stage)
        assert any(p.grad is not None and bool(p.grad.any()) for p in models[stage.train[0]].parameters())
        kinds = {type(term.loss) for term in stage.terms}
        assert kinds <= {MeanSquaredError, FeatureMSE, AttentionScoreMSE}, stage.name


@pytest.mark.parametrize("case", CASES)
def test_a_short_run_trains_and_delivers(case):
    recipe = recipe_of(case)
    result = bitstill.compress(recipe, DATA, networks(recipe), settings=QUIET)
    told = result.report["delivered"]
    logits = predict(result.model, DATA, DATA.test)
    assert logits.shape in ((48, 1), (48,)) and told["metric"] == "minus squared error"
    assert told["test"] == minus_squared_error(logits, DATA.test.labels) == evaluate(result.model, DATA, DATA.test)
    stages = recipe.stages(RunContext(DATA.objective, networks(recipe)))
    trained = {entry["stage"] for entry in result.report["history"] if "loss" in entry}
    assert trained == {stage.name for stage in stages if stage.terms}


def test_the_quantized_student_learns_the_values():
    """Better than predicting the best constant."""
    data = task(256, regression=True)
    fine = bitstill.compress(
        bitstill.recipes.FineTuning(steps=80, lr=0.01, validations=2), data, {"student": encoder(classes=1)}, settings=QUIET
    )
    constant = -float(data.test.labels.var(correction=0))
    assert fine.report["delivered"]["test"] > 0.5 * constant
    teacher = fine.models["student"]
    recipe = bitstill.recipes.XTC(bits=4, steps=20, lr=3e-3, validations=2)
    result = bitstill.compress(recipe, data, {"teacher": teacher}, settings=QUIET)
    assert result.report["delivered"]["test"] > 0.6 * constant


@pytest.mark.parametrize("loss", [SoftCrossEntropy(), SoftCrossEntropy("mean"), KL(), KL(1.0, "mean")])
def test_a_softmax_over_one_value_is_refused_though_labels_teach(loss):
    stage = Stage("s", terms=(Term(MeanSquaredError()), Term(loss, teacher="teacher")), steps=12, batch_size=16)
    models = {"teacher": encoder(1, classes=1), "student": encoder(2, classes=1)}
    before = copy.deepcopy(models["student"].state_dict())
    with pytest.raises(TrainingError, match=rf"term student/{type(loss).__name__}<-teacher: wanted a loss with a gradient"):
        train([stage], models, DATA, QUIET)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in models["student"].state_dict().items())


def test_it_is_noticed_in_a_stage_shorter_than_ten_steps_too():
    stage = Stage("s", terms=(Term(SoftCrossEntropy(), teacher="teacher"),), steps=2, batch_size=16, optimizer=AdamW(1e-3))
    with pytest.raises(TrainingError, match="exactly zero"):
        train([stage], {"teacher": encoder(1, classes=1), "student": encoder(2, classes=1)}, DATA, QUIET)


def test_a_cross_entropy_with_values_is_refused():
    stage = Stage("s", terms=(Term(CrossEntropy()),), steps=2, batch_size=16)
    with pytest.raises(DataError, match="Use MeanSquaredError for regression"):
        train([stage], {"student": encoder(classes=1)}, DATA, QUIET)


@pytest.mark.parametrize("case", ["quantized-distillation", "xtc", "fine-tuning"])
def test_a_network_with_several_outputs_is_refused(case, monkeypatch):
    monkeypatch.setattr("bitstill.run.driver.train", lambda *_, **__: pytest.fail("training began"))
    recipe = recipe_of(case)
    models = {role: encoder(classes=2) for role in needed_roles(recipe, {})}
    with pytest.raises(DataError, match="one value, as tiny text has, got 2 outputs"):
        bitstill.compress(recipe, DATA, models, settings=QUIET)


@pytest.mark.parametrize("recipe", [QuantizedDistillation(pairs=(), **SHORT), DifferentiableQuantization(**SHORT)])
def test_classes_are_still_taught_by_a_divergence(recipe):
    for stage in recipe.stages(RunContext(Classification(3), untrained=frozenset({"teacher"}))):
        assert {type(term.loss) for term in stage.terms} <= {KL, CrossEntropy}


def test_a_transformer_for_regression_is_delivered_as_one(tmp_path):
    result = bitstill.compress(
        bitstill.recipes.XTC(**SHORT, layers=2), DATA, {"teacher": bert(classes=1)}, settings=QUIET, out=tmp_path / "out"
    )
    again = bitstill.load(tmp_path / "out")
    assert (again.config.problem_type, again.config.num_labels, again.config.num_hidden_layers) == ("regression", 1, 2)
    assert evaluate(again, DATA, DATA.test) == result.report["delivered"]["test"]
