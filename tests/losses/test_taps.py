"""Intermediate outputs: what is collected, and that nothing stays behind in the model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bitstill.errors import MatchError
from bitstill.losses.features import FeatureMSE, Pair
from bitstill.losses.taps import Output, as_logits, tap
from bitstill.train.stage import Stage, Term
from bitstill.train.step import run, taps


class Cell(nn.Module):
    """Returns a tuple that begins with a tensor, as attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x), {"weights": None}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head, self.unused = Cell(), nn.Linear(3, 2), nn.Linear(1, 1)

    def forward(self, x):
        return self.head(self.cell(x)[0].relu())


def hooks(model):
    return [len(module._forward_hooks) for module in model.modules()]


def test_tapped_outputs_are_those_of_the_modules():
    model, x = Net(), torch.randn(4, 3)
    with tap(model, ["cell", "cell.inner", "head", "head"]) as found:
        logits = model(x)
    assert list(found) == ["cell.inner", "cell", "head"], "in the order in which they ran"
    assert torch.equal(found["cell.inner"], model.cell.inner(x)) and torch.equal(found["head"], logits)
    assert found["cell"] is found["cell.inner"], "the first element of the tuple"


def test_hooks_are_gone_when_the_block_ends_and_the_model_computes_the_same():
    model, x = Net(), torch.randn(4, 3)
    before = model(x)
    with tap(model, ["cell", "head"]) as found:
        assert sum(hooks(model)) == 2
        assert torch.equal(model(x), before)
    assert sum(hooks(model)) == 0
    found.clear()
    model(x)
    copy.deepcopy(model)
    assert not found


def test_hooks_are_gone_after_an_exception_inside_the_block():
    model = Net()
    with pytest.raises(RuntimeError), tap(model, ["cell", "head"]):
        model(torch.randn(4, 99))
    assert sum(hooks(model)) == 0


def test_a_name_that_is_no_module_is_an_error_with_the_nearest_one_and_leaves_no_hook():
    model = Net()
    with pytest.raises(MatchError, match=r"got 'cell\.iner'.*Did you mean 'cell\.inner'\?"), tap(model, ["head", "cell.iner"]):
        pass
    assert sum(hooks(model)) == 0


class _Task:
    @staticmethod
    def outputs(model, batch):
        return model(batch["x"])


def test_a_module_that_does_not_run_is_an_error_that_names_it():
    with pytest.raises(MatchError, match=r"a module that runs.*'unused'"):
        run(Net(), _Task(), {"x": torch.randn(2, 3)}, ("head", "unused"))


def test_each_side_of_a_pair_is_tapped_in_its_own_model():
    terms = (
        Term(FeatureMSE((Pair("s1", "t1"), Pair("s1", "t2"))), teacher="teacher"),
        Term(FeatureMSE((Pair("t3", "s3"),)), student="teacher", teacher="student"),
    )
    stage = Stage("mutual", train=("student", "teacher"), terms=terms, steps=1)
    assert taps(stage, "student") == ("s1", "s3")
    assert taps(stage, "teacher") == ("t1", "t2", "t3")


def test_logits_are_found_in_whatever_a_model_returns():
    x = torch.randn(2, 3)
    assert as_logits(x) is x
    assert as_logits((x, None)) is x and as_logits([x]) is x
    assert as_logits(SimpleNamespace(logits=x, loss=None)) is x


@pytest.mark.parametrize("output", [None, (), ("text",), {"logits": torch.zeros(1)}, SimpleNamespace(logits=None)])
def test_outputs_without_logits_are_an_error(output):
    with pytest.raises(MatchError, match="Wrap the model so that its forward returns logits"):
        as_logits(output)


def test_detach_cuts_the_graph_and_keeps_the_numbers():
    x = torch.randn(2, 3, requires_grad=True)
    output = Output(x * 2, {"a": x * 3})
    cut = output.detach()
    assert all(not tensor.requires_grad for tensor in cut.tensors())
    assert all(torch.equal(a, b) for a, b in zip(cut.tensors(), output.tensors(), strict=True))
