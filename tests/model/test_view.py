"""The dense view: the student's effective important weights, its own spare weights, and nothing else that learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitstill
from bitstill.data.objectives import Classification
from bitstill.data.task import Split, Task
from bitstill.errors import MatchError, SpecError
from bitstill.losses.logits import KL, CrossEntropy
from bitstill.model.dense_view import DenseView
from bitstill.model.lifecycle import freeze, prepare, uncompressed
from bitstill.quant.rules import Binary, Compression, LearnedStep, Prune, Quantizer, Ternary, Uniform
from bitstill.train.actions import AddDenseView
from bitstill.train.loop import train
from bitstill.train.optim import SGD, AdamW, Optimizer
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term

QUANTIZERS: list[Quantizer] = [LearnedStep(2), LearnedStep(4, dead_zone=False), Binary(), Ternary(), Uniform(3)]


class Net(nn.Module):
    """A dense first layer, two that are pruned, norms with and without parameters, a classifier: (N, 2, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 6, 3)
        self.norm1 = nn.BatchNorm1d(6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm1d(6, affine=False)
        self.hidden = nn.Linear(6, 10)
        self.norm3 = nn.LayerNorm(10)
        self.classifier = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = torch.relu(self.norm2(self.conv(x)))
        logits: Tensor = self.classifier(torch.relu(self.norm3(self.hidden(x.mean(-1)))))
        return logits


OWN = ("norm1", "norm2", "norm3", "classifier")


def pruned(spec: Quantizer, sparsity: float = 0.6) -> Net:
    torch.manual_seed(0)
    net = Net()
    prepare(net, Compression(weight=spec, prune=Prune(sparsity), targets=("conv", "hidden")))
    return net


def view_of(net: nn.Module, own: tuple[str, ...] = OWN) -> DenseView:
    return DenseView(net, uncompressed(net), own)


def data() -> Task:
    def split(count: int, seed: int) -> Split:
        x = torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(seed))
        return Split({"x": x}, (x.mean((1, 2)) * 20).round().long().clamp(0, 2))

    return Task("tiny", split(64, 1), split(16, 2), split(16, 3), Classification(3), lambda model, batch: model(batch["x"]))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("spec", QUANTIZERS)
def test_the_weight_is_important_ones_quantized_and_spare_ones_in_float(spec):
    net = pruned(spec)
    view = view_of(net)
    for name in ("conv", "hidden"):
        layer = net.get_submodule(name)
        mask = layer.weight_transform.mask
        assert torch.equal(view.weight(name)[mask], layer.effective_weight()[mask])
        assert torch.equal(view.weight(name)[~mask], layer.weight[~mask]), "full precision, where phase 1 left them"
        assert len(view.weight(name)[~mask].unique()) == int((~mask).sum()) > len(layer.effective_weight()[~mask].unique())


@pytest.mark.parametrize("spec", QUANTIZERS)
def test_outputs_are_those_of_a_network_with_these_weights(spec):
    net = pruned(spec)
    view, plain = view_of(net), uncompressed(net)
    with torch.no_grad():
        for name in view.pruned:
            plain.get_submodule(name).weight.copy_(view.weight(name))
    x = torch.randn(5, 2, 8)
    assert torch.equal(view.eval()(x), plain.eval()(x))


def test_only_spare_weights_own_norms_and_the_head_are_parameters_and_get_gradients():
    net = pruned(LearnedStep(4))
    view = view_of(net)
    mine = {"conv.weight", "hidden.weight", "norm1.weight", "norm1.bias", "norm3.weight", "norm3.bias"}
    mine |= {"classifier.weight", "classifier.bias"}
    assert {name.removeprefix("skeleton.") for name, _ in view.named_parameters()} == mine
    view(torch.randn(5, 2, 8)).square().sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters()), "no gradient into the student, steps included"
    for name in view.pruned:
        gradient, mask = view.skeleton.get_submodule(name).weight.grad, net.get_submodule(name).weight_transform.mask
        assert float(gradient[mask].abs().max()) == 0.0 < float(gradient[~mask].abs().max())


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(0.05, weight_decay=0.1)])
@pytest.mark.parametrize("spec", QUANTIZERS)
def test_a_warm_up_moves_nothing_of_the_student(spec: Quantizer, optimizer: Optimizer):
    """Not by momentum, weight decay or running statistics; in the view, only its own parameters move."""
    net = pruned(spec)
    net.train()(torch.randn(30, 2, 8))
    models: dict[str, nn.Module] = {"student": net}
    term = Term(CrossEntropy(), student="teacher")
    begin = (AddDenseView("student", "teacher"),)
    stage = Stage("warm", train=("teacher",), terms=(term,), steps=12, batch_size=16, optimizer=optimizer, begin=begin)
    before = state(net)
    fresh = state(view_of(net))
    train([stage], models, data(), Settings(progress=False, device="cpu"))
    after, view = state(net), models["teacher"]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert isinstance(view, DenseView)
    moved = {name for name, tensor in state(view).items() if not torch.equal(tensor, fresh[name])}
    assert moved == set(fresh), "spare weights, norms with their statistics, and the classifier all learn"
    for name in view.pruned:
        mask = net.get_submodule(name).weight_transform.mask
        assert torch.equal(view.weight(name)[mask], net.get_submodule(name).effective_weight()[mask])


def test_mutual_learning_moves_both_and_the_view_follows_the_student():
    net = pruned(LearnedStep(4))
    models: dict[str, nn.Module] = {"student": net}
    terms = (
        Term(CrossEntropy()), Term(KL(), teacher="teacher"),
        Term(CrossEntropy(), student="teacher"), Term(KL(), student="teacher", teacher="student"),
    )  # fmt: skip
    begin = (AddDenseView("student", "teacher"),)
    before = state(net)
    stage = Stage("mutual", train=("student", "teacher"), terms=terms, steps=6, batch_size=16, begin=begin)
    history = train([stage], models, data(), Settings(progress=False, device="cpu"))
    assert {key for entry in history for key in entry} >= {term.name for term in terms}
    after, view = state(net), models["teacher"]
    assert isinstance(view, DenseView)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.endswith("mask")} | {"stem.bias", "conv.bias"}, "norms undo these biases"
    for name in view.pruned:
        mask = net.get_submodule(name).weight_transform.mask
        assert torch.equal(view.weight(name)[mask], net.get_submodule(name).effective_weight()[mask])


def test_layers_quantized_without_a_mask_are_shared_as_they_are_used():
    torch.manual_seed(1)
    net = Net()
    rules = [
        Compression(weight=Ternary(), targets=("stem",)),
        Compression(weight=LearnedStep(4), prune=Prune(0.5), targets=("conv",)),
    ]
    prepare(net, rules)
    view = view_of(net)
    assert view.pruned == ("conv",)
    plain = uncompressed(net)
    with torch.no_grad():
        plain.stem.weight.copy_(net.stem.effective_weight())
        plain.conv.weight.copy_(view.weight("conv"))
    x = torch.randn(4, 2, 8)
    assert torch.equal(view.eval()(x), plain.eval()(x))


def test_a_copy_and_a_frozen_view_read_their_own_student():
    view = view_of(pruned(LearnedStep(4))).eval()
    x = torch.randn(3, 2, 8)
    wanted = view(x).detach()
    for other in (copy.deepcopy(view), freeze(view)):
        assert other.student is not view.student
        assert torch.equal(other(x), wanted)


def test_a_moved_view_takes_its_student_along():
    view = view_of(pruned(LearnedStep(4))).double()
    assert next(view.student.parameters()).dtype == torch.float64


def test_a_student_without_masks_is_refused():
    net = Net()
    prepare(net, Compression(weight=Binary(), targets=("conv",)))
    with pytest.raises(SpecError, match="a student with layers that prune, got none"):
        view_of(net)


def test_a_model_without_norms_is_refused_unless_told():
    task, net = data(), nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    prepare(net, Compression(weight=LearnedStep(4), prune=Prune(0.5), targets=("1",)))
    models: dict[str, nn.Module] = {"student": net}
    with pytest.raises(MatchError, match=r"a model with norm layers, got none.*own_norms=False"):
        AddDenseView("student", "teacher").apply(models, task, 0)
    AddDenseView("student", "teacher", own_norms=False).apply(models, task, 0)
    assert {name for name, _ in models["teacher"].named_parameters()} == {
        "skeleton.1.weight", "skeleton.3.weight", "skeleton.3.bias"
    }  # fmt: skip


def test_nothing_of_the_teacher_is_delivered(tmp_path):
    recipe = bitstill.recipes.PQK(epochs=1, warmup_epochs=1, mutual_epochs=1, batch_size=16, validations=1)
    settings: Any = bitstill.train.Settings(progress=False, device="cpu")
    models: dict[str, nn.Module] = {"student": Net()}
    result = bitstill.compress(recipe, data(), models, out=tmp_path / "out", settings=settings)
    archive = bitstill.read(tmp_path / "out")
    names = {name for layer in archive.layers.values() for name in layer.tensors()} | set(archive.leftovers)
    assert not any("skeleton" in name or "spare" in name for name in names)
    zeros = sum(int((archive.weight(name) == 0).sum()) for name in archive.layers)
    assert zeros == round(0.8 * sum(layer.weights for layer in archive.layers.values()))
    assert result.report["delivered"]["samples"] == 16
