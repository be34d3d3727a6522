"""A dry run reports what would happen and changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from bitstill.data.networks import build
from bitstill.errors import MatchError, SpecError
from bitstill.losses.features import Pair
from bitstill.quant.granularity import PerGroup
from bitstill.recipes import PQK, DifferentiableQuantization, PostTraining, QuantizedDistillation
from bitstill.report.stage_plan import planned_stages
from bitstill.run.dry_run import dry_run
from bitstill.run.job import Job


def plan(recipe, **models):
    return dry_run(Job(recipe, models, "digits"))


def test_stages_and_their_steps_with_the_teachers_where_it_has_to_be_trained():
    """1,100 samples in batches of 128: 8 steps an epoch."""
    recipe = QuantizedDistillation(epochs=2, float_epochs=0.5, teacher_epochs=3)
    found = plan(recipe, teacher="digits-teacher", student="digits-student")
    wanted = [("teacher", 24), ("float student", 4), ("quantized distillation", 16)]
    assert [(stage["name"], stage["steps"]) for stage in found["stages"]] == wanted
    headings = [plan.heading for plan in planned_stages(found["stages"])]
    assert headings[:2] == ["3 epochs (24 steps) on the task", "0.5 epochs (4 steps) on the task"]
    given = plan(recipe, teacher=build("digits-teacher"), student="digits-student")
    assert [stage["name"] for stage in given["stages"]] == ["float student", "quantized distillation"]
    assert [stage["steps"] for stage in plan(PostTraining(), student="digits-student")["stages"]] == [0]


def test_every_parameter_is_listed_with_what_would_happen_to_it():
    student = build("digits-student")
    found = plan(PostTraining(2), student=student)
    actions = {row["parameter"]: (row["action"], row["detail"]) for row in found["parameters"]}
    assert set(actions) == {name for name, _ in student.named_parameters()}
    assert {name for name, (action, _) in actions.items() if action == "quantized"} == {"features.3.weight", "hidden.0.weight"}
    assert actions["classifier.weight"] == ("float", "not selected") and actions["classifier.bias"] == ("float", "bias")
    json.dumps(found)


def test_bytes_are_the_arithmetic_of_the_plan():
    """4 bits in groups of 32 per row, with float16 scale and minimum: rows of 108 and 256 weights."""
    recipe = PostTraining(4, PerGroup(32))
    size = plan(recipe, student="digits-student")["size"]
    assert size["by_kind"]["codes"] == 16 * 108 // 2 + 48 * 256 // 2
    assert size["by_kind"]["scales"] == 2 * 2 * (16 * 4 + 48 * 8)
    assert sum(size["by_kind"].values()) == size["file_bytes"]


def test_networks_that_are_handed_in_are_left_alone():
    student = build("digits-student").train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    kinds = [type(module) for module in student.modules()]
    plan(DifferentiableQuantization(2, float_epochs=0), student=student)
    assert [type(module) for module in student.modules()] == kinds and student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_it_refuses_what_a_run_would_refuse():
    with pytest.raises(MatchError, match=r"got 'features\.x'"):
        plan(
            QuantizedDistillation(pairs=(Pair("features.x", "features.0"),)), teacher="digits-teacher", student="digits-student"
        )
    with pytest.raises(SpecError, match="a model for the role 'teacher'"):
        plan(QuantizedDistillation(), student="digits-student")
    with pytest.raises(SpecError, match="a duration above 0"):
        plan(QuantizedDistillation(epochs=0), teacher="digits-teacher", student="digits-student")


def test_a_pruned_plan_has_the_bytes_of_its_zeros():
    sizes = [plan(PQK(sparsity=s), student="digits-student")["size"] for s in (0.0, 0.5, 0.9)]
    assert sizes[0]["file_bytes"] > sizes[1]["file_bytes"] > sizes[2]["file_bytes"]
    weights = sum(layer["weights"] for layer in sizes[2]["layers"])
    assert round(sum(layer["zeros"] * layer["weights"] for layer in sizes[2]["layers"])) == round(0.9 * weights)


def test_n_of_m_that_does_not_divide_a_layer_is_found():
    with pytest.raises(SpecError, match="rows that 5 divides"):
        plan(PQK(sparsity=0.2, within=5, scope="layer"), student="digits-student")
