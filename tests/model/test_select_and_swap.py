"""Layer selection by name and by role, and swapping a layer at all of its names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitstill.errors import MatchError, SpecError
from bitstill.model.lifecycle import prepare
from bitstill.model.select import candidates, first_and_last_tensor, layers_in_order, select
from bitstill.model.swap import swap
from bitstill.quant.rules import Binary, Compression


class Backwards(nn.Module):
    """Registers its classifier first and runs it last."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(6, 2)
        self.middle = nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.5)
        self.first = nn.Linear(4, 6)

    def forward(self, x):
        return self.output(self.dropout(self.middle(self.first(x))))


def test_a_name_that_reads_as_a_glob_means_its_layer():
    model = nn.Sequential(nn.ModuleDict({"[0]": nn.Linear(2, 2), "0": nn.Linear(2, 2)}))
    assert list(select(model, ("0.[0]",))) == ["0.[0]"]


def run(model: nn.Module) -> object:
    return model(torch.randn(2, 4))


def test_patterns_are_globs_over_dotted_names(zoo):
    nested = nn.ModuleDict({"a": zoo, "b": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    everything = ["a.emb", "a.conv1", "a.conv2", "a.head", "b.0"]
    assert list(candidates(nested)) == list(select(nested, ("*",))) == everything
    assert list(select(nested, ("a.*",), ("*.conv?",))) == ["a.emb", "a.head"]
    assert list(select(nested, ("*.head", "b.0"))) == ["a.head", "b.0"]
    assert select(nested, ("b.0",))["b.0"] is nested["b"][0]


@pytest.mark.parametrize("setting", ["targets", "ignore"])
def test_a_pattern_that_matches_nothing_names_the_nearest_layer(zoo, setting):
    arguments = {"targets": ("*",), setting: ("haed",)}
    with pytest.raises(MatchError, match=rf"{setting} over Zoo: .*'haed'.*Did you mean 'head'") as caught:
        select(zoo, **arguments)
    for name in ("emb", "conv1", "conv2", "head"):
        assert name in str(caught.value)


def test_patterns_over_modules_that_are_no_layers_match_nothing(zoo):
    with pytest.raises(MatchError, match="'norm'"):
        select(zoo, ("norm",))


def test_nothing_left_is_an_error(zoo):
    with pytest.raises(MatchError, match="leave none"):
        select(zoo, ("head",), ("h*",))
    with pytest.raises(MatchError, match="wanted a model with Linear"):
        select(nn.Sequential(nn.ReLU()), ("*",))


def test_roles_are_found_by_running_not_by_registration():
    model = Backwards()
    assert list(select(model, ("role:stem",), (), run)) == ["first"]
    assert list(select(model, ("role:classifier",), (), run)) == ["output"]
    assert list(select(model, ("*",), ("role:classifier", "role:stem"), run)) == ["middle"]
    assert layers_in_order(model, run) == ["first", "middle", "output"]


def test_layers_in_order_also_sees_compressed_layers():
    model = Backwards()
    prepare(model, Compression(weight=Binary(), targets=("middle",)))
    assert layers_in_order(model, run) == ["first", "middle", "output"]


def test_running_leaves_no_hook_no_gradient_and_every_training_flag():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].eval()  # frozen statistics in a model that trains
    seen = []

    def watch(m: nn.Module) -> None:
        seen.append((m.training, torch.is_grad_enabled()))
        run(m)

    before = model[1].running_mean.clone()
    layers_in_order(model, watch)
    assert seen == [(False, False)]
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model[1].running_mean, before)


def test_a_failing_run_leaves_the_model_as_it_was():
    model = Backwards()

    def fail(m: nn.Module) -> None:
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        layers_in_order(model, fail)
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_roles_need_inputs_and_a_known_name():
    with pytest.raises(MatchError, match="sample inputs"):
        select(Backwards(), ("role:classifier",))
    with pytest.raises(MatchError, match="Did you mean 'role:classifier'"):
        select(Backwards(), ("role:clasifier",), (), run)
    with pytest.raises(MatchError, match="none ran"):
        layers_in_order(Backwards(), lambda model: None)


def test_first_and_last_tensor_is_the_literal_rule():
    """In most networks the last tensor is a bias, so only the first layer is skipped."""
    assert first_and_last_tensor(Backwards()) == ("output",)
    assert first_and_last_tensor(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))) == ("0", "1")
    assert first_and_last_tensor(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))) == ()
    assert first_and_last_tensor(nn.Sequential(nn.ReLU())) == ()


class Shared(nn.Module):
    """One layer under three names, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one
        self.deep = nn.ModuleDict({"three": self.one})

    def forward(self, x):
        return self.deep["three"](self.two(self.one(x)))


def test_a_shared_layer_is_swapped_at_every_name():
    model = Shared()
    new = nn.Linear(4, 4)
    swap(model, {model.one: new})
    assert model.one is model.two is model.deep["three"] is new


def test_a_shared_layer_is_prepared_once():
    model = Shared()
    report = prepare(model, Compression(weight=Binary()))
    assert report.quantized == ("one.weight",)
    assert model.one is model.two is model.deep["three"]
    assert type(model.two).__name__ == "CompressedLinear"


def test_a_bare_layer_cannot_be_swapped():
    layer = nn.Linear(2, 2)
    with pytest.raises(SpecError, match=r"Wrap it: nn\.Sequential"):
        prepare(layer, Compression(weight=Binary()))
    assert type(layer) is nn.Linear
