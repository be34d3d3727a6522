"""Rehearsal: a step of every stage runs before training, and refuses what would fail or learn nothing later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bitstill
from bitstill.data import Classification, Split, Task
from bitstill.errors import BitstillError, SpecError, TrainingError
from bitstill.losses import CrossEntropy
from bitstill.quant import Compression, Uniform
from bitstill.run.rehearsal import rehearse
from bitstill.train import Compress, Settings, Stage, Term

SPLIT = Split({"x": torch.randn(12, 4, generator=torch.Generator().manual_seed(0))}, torch.arange(12) % 3)
TASK = Task("tiny", SPLIT, SPLIT, SPLIT, Classification(3), forward=lambda model, batch: model(batch["x"]))


class Net(nn.Module):
    """x (N, 4) -> (N, 3); `how` runs the first layer."""

    def __init__(self, how: Callable[[nn.Linear, Tensor], Tensor], norm: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.how(self.first, x)).relu())


def called(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x)


def by_its_weight(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def by_a_reentrant_checkpoint(layer: nn.Linear, x: Tensor) -> Tensor:
    return checkpoint(layer, x, use_reentrant=True)


@torch.no_grad()
def without_gradient(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x)


def stage(batch_size: int = 4, train: str = "student") -> Stage:
    compress = Compress("student", Compression(targets=("*",), weight=Uniform(4)))
    term = Term(CrossEntropy(), student=train)
    return Stage("training", (train,), (term,), steps=1, batch_size=batch_size, begin=(compress,))


@pytest.mark.parametrize(
    ("network", "options", "kind", "message"),
    [
        (Net(by_its_weight), {}, SpecError, r"stage 'training', student.first: wanted compressed layers that are called"),
        (Net(by_a_reentrant_checkpoint), {}, TrainingError, "none through a reentrant checkpoint.*use_reentrant=False"),
        (Net(called).requires_grad_(False), {}, TrainingError, "wanted outputs with a gradient, got none"),
        (Net(called, norm=True), {"accumulate": 4}, SpecError, "parts of at least 2 samples, got parts of 1"),
        (Net(called), {"accumulate": 3}, SpecError, "a batch divisible by 1 processes x 3 parts, got 4 samples"),
    ],
)
def test_what_cannot_train_is_refused(network: Net, options: dict[str, int], kind: type[BitstillError], message: str):
    with pytest.raises(kind, match=message):
        rehearse((stage(),), {"student": network}, {"task": TASK}, **options)


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_what_can_train_is_left_as_it_was():
    for network, accumulate in ((Net(called), 4), (Net(without_gradient), 1), (Net(called, norm=True), 2)):
        network.eval()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        rehearse((stage(),), {"student": network}, {"task": TASK}, accumulate)
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
        assert not any(module.training for module in network.modules())


def test_a_norm_in_eval_mode_and_a_frozen_layer_stay_as_their_owner_set_them(tmp_path):
    student = Net(called, norm=True)
    del student.unused
    student.norm.running_mean.fill_(0.5)
    student.norm.eval()
    student.last.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    recipe = bitstill.recipes.QuantizedDistillation(bits=4, steps=3, batch_size=4, skip="none")
    models = {"student": student, "teacher": Net(called)}
    result = bitstill.compress(recipe, TASK, models, out=tmp_path / "out", settings=Settings(progress=False, accumulate=4))
    after = result.models["student"].state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {"first.weight", "first.bias", "norm.weight", "norm.bias"}


def test_a_layer_that_was_never_called_is_not_saved(tmp_path):
    model = Net(by_its_weight)
    bitstill.prepare(model, Compression(targets=("first", "last"), weight=Uniform(2)))
    model(SPLIT.inputs["x"])
    with pytest.raises(SpecError, match=r"save, first: wanted compressed layers that are all called .* got 1 of 2"):
        bitstill.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
