"""Splitting within a budget: the measured value is the cost of binarizing one matrix, and the selection fits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitstill.data.objectives import Classification
from bitstill.data.task import Split, Task
from bitstill.errors import SpecError
from bitstill.losses.logits import MeanSquaredError
from bitstill.model.lifecycle import freeze, pack, prepare
from bitstill.quant.granularity import PerGroup
from bitstill.quant.rules import Binary, Compression, SplitBinary, Ternary
from bitstill.train.actions import SplitTernary
from bitstill.train.adaptive import ChooseTernary
from bitstill.train.stage import Term


def data() -> Task:
    torch.manual_seed(0)
    part = Split({"x": torch.randn(64, 8)}, torch.randint(0, 3, (64,)))
    return Task("made up", part, part, part, Classification(3), lambda model, batch: model(batch["x"]))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    student = copy.deepcopy(teacher)
    prepare(student, Compression(weight=Ternary()))
    return {"teacher": teacher, "student": student}


TERMS = (Term(MeanSquaredError(), teacher="teacher"),)
BYTES = {"0": 32 * 1 + 32 * 4, "2": 16 * 4 + 16 * 4, "4": 3 * 2 + 3 * 4}
SMALLEST = sum(BYTES.values())


def packed_bytes(model: nn.Module) -> int:
    packed = pack(freeze(model))
    planes = [plane for layer in packed if hasattr(layer, "packed") for plane in layer.packed.planes]
    return sum(plane.codes.numel() + 4 * plane.scale.numel() for plane in planes)


def test_the_gain_is_what_the_loss_rises_when_one_matrix_alone_becomes_binary():
    models, task = networks(), data()
    action = ChooseTernary("student", 10_000, TERMS, batches=2, batch_size=32)
    found = action.decide(models, task, 0)["units"]
    assert {name: unit["bytes"] for name, unit in found.items()} == BYTES
    x = task.train.inputs["x"]  # two batches of 32 cover everything

    def loss(model):
        with torch.no_grad():
            return float((model(x) - models["teacher"](x)).square().mean())

    base = loss(models["student"])
    for name, unit in found.items():
        changed = copy.deepcopy(models["student"])
        changed.get_submodule(name).weight_transform.quantizer = Binary()
        assert unit["gain"] == pytest.approx(loss(changed) - base, rel=1e-4)
    specs = [models["student"].get_submodule(name).weight_transform.quantizer for name in BYTES]
    assert specs == [Ternary()] * 3, "measured, and put back"


@pytest.mark.parametrize("budget", [SMALLEST, SMALLEST + BYTES["4"], SMALLEST + BYTES["2"] + 20, 2 * SMALLEST])
def test_what_is_chosen_fits_and_is_the_best_that_does(budget):
    models, task = networks(), data()
    action = ChooseTernary("student", budget, TERMS)
    decision = action.decide(models, task, 0)
    gains = {name: unit["gain"] for name, unit in decision["units"].items()}
    subsets = [[name for place, name in enumerate(BYTES) if bits >> place & 1] for bits in range(8)]
    fitting = [subset for subset in subsets if SMALLEST + sum(BYTES[name] for name in subset) <= budget]
    assert sum(gains[n] for n in decision["ternary"]) == pytest.approx(max(sum(gains[n] for n in s) for s in fitting))
    action.repeat(models, decision)
    for name in BYTES:
        wanted = Ternary() if name in decision["ternary"] else Binary()
        assert models["student"].get_submodule(name).weight_transform.quantizer == wanted
    SplitTernary("student", optional=True).apply(models, task, 0)
    assert packed_bytes(models["student"]) <= budget
    planes = {name: type(models["student"].get_submodule(name).weight_transform.quantizer) for name in BYTES}
    assert planes == {name: SplitBinary if name in decision["ternary"] else Binary for name in BYTES}


def test_a_budget_below_one_bit_for_each_weight_is_refused_before_anything_is_trained():
    action = ChooseTernary("student", SMALLEST - 1, TERMS)
    for attempt in (lambda: action.decide(networks(), data(), 0), lambda: action.replay(networks(), data())):
        with pytest.raises(SpecError, match=f"at least {SMALLEST:,} bytes"):
            attempt()


def test_layers_that_share_a_weight_are_one_choice():
    models = {"student": nn.ModuleDict({"words": nn.Embedding(8, 8), "out": nn.Linear(8, 8, bias=False)})}
    models["student"]["out"].weight = models["student"]["words"].weight
    prepare(models["student"], Compression(weight=Ternary(PerGroup(4))))
    models["teacher"] = copy.deepcopy(models["student"])
    torch.manual_seed(0)
    part = Split({"ids": torch.randint(0, 8, (32, 3))}, torch.randint(0, 8, (32,)))
    task = Task(
        "tied", part, part, part, Classification(8), lambda model, batch: model["out"](model["words"](batch["ids"]).mean(1))
    )
    decision = ChooseTernary("student", 10_000, TERMS).decide(models, task, 0)
    assert set(decision["units"]) == {"words"} and decision["ternary"] in ([], ["words", "out"])
