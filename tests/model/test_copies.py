"""Live models are delivered whatever hooks or wrappers they have; anything that hides weights is refused by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import bitstill
from bitstill.errors import SpecError
from bitstill.model.copies import copy_models

RULE = bitstill.quant.Compression(targets=("first", "last"), weight=bitstill.quant.Uniform(4))
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """x (N, 6) -> (N, 2), with a middle layer that tests decorate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


def keep_activations(model: Net) -> None:
    model.kept = {"all": []}
    model.register_buffer("state", None, persistent=False)

    def hook(module: nn.Module, _args: object, output: torch.Tensor) -> None:
        model.kept["all"].append(output)
        model.state = output

    model.middle.register_forward_hook(hook)


def keep_what_no_copy_can_hold(model: Net) -> None:
    model.lock, model.log = threading.Lock(), [open(__file__), (number for number in range(3))]  # noqa: SIM115


def old_weight_norm(model: Net) -> None:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model.middle)


def pruning_mask(model: Net) -> None:
    prune.l1_unstructured(model.middle, "weight", 0.5)


@pytest.mark.parametrize("decorate", [keep_activations, keep_what_no_copy_can_hold, old_weight_norm, pruning_mask])
def test_what_cannot_be_copied_does_not_keep_a_model_from_delivery(decorate: Callable[[Net], None], tmp_path: Path):
    model, blank = Net(), Net()
    for network in (model, blank):
        decorate(network)
    bitstill.prepare(model, RULE)
    expected = model(X)
    expected.sum().backward()
    bitstill.save(model, tmp_path / "out")
    assert torch.equal(bitstill.load(tmp_path / "out", model=blank)(X), expected)
    assert torch.equal(bitstill.pack(bitstill.freeze(model))(X), expected)
    if hasattr(model, "log"):
        model.log[0].close(), blank.log[0].close()


def test_copies_share_what_their_models_share_and_nothing_with_them():
    one, other = Net(), Net()
    one.last = other.last
    for model in (one, other):
        model.lock = threading.Lock()
    copies = copy_models({"one": one, "other": other})
    assert copies["one"].last is copies["other"].last is not one.last
    assert copies["one"].first.weight is not one.first.weight and copies["one"].lock is one.lock


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_inside(model: Net) -> nn.Module:
    model.middle = torch.compile(model.middle, backend="eager")
    return model


def averaged(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model)


@pytest.mark.parametrize("wrap", [compiled, compiled_inside, nn.DataParallel, averaged, lambda m: compiled(averaged(m))])
def test_wrappers_are_taken_off(wrap: Callable[[Net], nn.Module], tmp_path: Path):
    model = Net()
    bitstill.prepare(model, RULE)
    expected = model(X)
    wrapped = wrap(model)
    bitstill.save(wrapped, tmp_path / "out")
    assert torch.equal(bitstill.load(tmp_path / "out", model=wrap(Net()))(X), expected)
    inside = {type(module).__name__ for module in bitstill.freeze(wrapped).modules()}
    assert inside.isdisjoint({"OptimizedModule", "AveragedModel", "DataParallel"})
    assert torch.equal(bitstill.freeze(wrapped)(X), expected)


def test_prepare_reaches_into_what_was_compiled_and_comes_before_every_other_wrapper():
    model = Net()
    bitstill.prepare(compiled(model), RULE)
    assert [name for name, module in model.named_modules() if hasattr(module, "effective_weight")] == ["first", "last"]
    with pytest.raises(SpecError, match="Prepare the network first, and put DataParallel around it"):
        bitstill.prepare(nn.DataParallel(Net()), RULE)


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "DeepSpeedEngine", "LoraModel"])
@pytest.mark.parametrize("call", [bitstill.prepare, bitstill.freeze, bitstill.save])
def test_what_hides_its_weights_is_refused_by_name(name: str, call: Callable[..., object], tmp_path: Path):
    hiding = type(name, (Net,), {"__module__": "peft.tuners" if name == "LoraModel" else __name__})()
    more = {bitstill.prepare: (RULE,), bitstill.save: (tmp_path / "out",)}.get(call, ())
    with pytest.raises(SpecError, match=f"{call.__name__}: wanted a network that holds its weights, got {name}"):
        call(hiding, *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # warnings of the compiler
def test_a_row_wise_embedding_computes_and_learns_the_same_in_one_graph():
    model = nn.Sequential(nn.Embedding(20, 16, padding_idx=2), nn.Linear(16, 3))
    per_group = bitstill.quant.Uniform(4, granularity=bitstill.quant.PerGroup(8))
    bitstill.prepare(model, bitstill.quant.Compression(targets=("*",), weight=per_group))
    ids = torch.tensor([[1, 2, 3], [3, 2, 5]])
    outputs, gradients = [], []
    for network in (model, torch.compile(model, backend="eager", fullgraph=True)):
        outputs.append(network(ids))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), model[0].weight)[0])
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)
