"""prepare, freeze, pack and unpack from a user's point of view."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitstill
from bitstill.errors import DataError, MatchError, SpecError
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.lifecycle import freeze, pack, prepare, report, unpack
from bitstill.model.restore import load_into
from bitstill.quant.rules import Binary, Compression, Points, QuantizeInput, Ternary, Uniform


def test_the_report_names_every_parameter_once_and_why(zoo):
    rows = prepare(zoo, Compression(weight=Uniform(4), ignore=("conv2",))).rows
    assert [row.parameter for row in rows] == [name for name, _ in zoo.named_parameters()]
    assert [row.shape for row in rows] == [tuple(p.shape) for p in zoo.parameters()]
    assert {row.parameter: (row.action, row.detail) for row in rows} == {
        "emb.weight": ("quantized", "4-bit affine"),
        "conv1.weight": ("quantized", "4-bit affine"),
        "conv1.bias": ("float", "bias"),
        "norm.weight": ("float", "parameter of BatchNorm1d"),
        "norm.bias": ("float", "bias"),
        "conv2.weight": ("float", "not selected"),
        "conv2.bias": ("float", "bias"),
        "head.weight": ("quantized", "4-bit affine"),
        "head.bias": ("float", "bias"),
    }


def test_the_report_tells_what_a_quantizer_learns(zoo):
    made = prepare(zoo, Compression(targets=("head",), weight=Points(4), input=QuantizeInput(range="clip", per="tensor")))
    details = {row.parameter: row.detail for row in made.rows}
    assert details["head.weight_transform.learned.points"] == "learned by the quantizer"
    assert details["head.input_transform.low"] == "learned by the quantizer"
    assert made.quantized == ("head.weight",)
    assert report(zoo) == made


def test_a_subclass_is_left_alone_and_reported(ids):
    class Loud(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 1

    model = nn.Sequential(Loud(4, 4), nn.Linear(4, 2))
    rows = {row.parameter: row for row in prepare(model, Compression(weight=Binary())).rows}
    assert type(model[0]) is Loud
    assert rows["0.weight"].action == "float"
    assert rows["0.weight"].detail == "subclass Loud with a forward of its own"


def test_several_rules_and_their_conflicts(zoo, make_zoo):
    rules = (Compression(targets=("conv*",), weight=Ternary()), Compression(targets=("head",), weight=Uniform(8)))
    details = {row.parameter: row.detail for row in prepare(zoo, rules).rows}
    assert details["conv1.weight"] == "ternary"
    assert details["head.weight"] == "8-bit affine"
    assert details["emb.weight"] == "not selected"
    other = make_zoo()
    with pytest.raises(MatchError, match="head: wanted each layer in one rule only"):
        prepare(other, (*rules, Compression(targets=("h*",), weight=Binary())))
    assert not any(is_compressed(m) for m in other.modules()), "an error changes nothing"


def test_what_is_compressed_is_not_compressed_again(zoo):
    prepare(zoo, Compression(weight=Binary()))
    for model in (zoo, freeze(zoo), pack(freeze(zoo))):
        with pytest.raises(SpecError, match="wanted a float model"):
            prepare(model, Compression(weight=Binary()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        return self.head(self.emb(ids))


@pytest.mark.parametrize("ignore", [(), ("head",), ("emb",)])
def test_tied_weights_stay_one_parameter_and_deliver(ignore, tmp_path, write_artifact, exact):
    model, ids = Tied(), torch.arange(6).reshape(2, 3)
    prepare(model, Compression(weight=Uniform(3), ignore=ignore))
    assert model.head.weight is model.emb.weight
    assert len(list(model.parameters())) == 1
    model(ids).sum().backward()
    assert model.emb.weight.grad is not None
    model.eval()
    with torch.no_grad():
        wanted = model(ids)
        reloaded = load_into(Tied(), bitstill.read(write_artifact(tmp_path, model)))
        for stage in (freeze(model), pack(freeze(model)), reloaded, unpack(reloaded)):
            assert exact(stage(ids)) == exact(wanted)


def test_a_shared_layer_is_delivered_once(tmp_path, write_artifact, exact):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(5, 5)
            self.two = self.one

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    model, x = Twice(), torch.randn(3, 5)
    prepare(model, Compression(weight=Uniform(3)))
    model.eval()
    archive = bitstill.read(write_artifact(tmp_path, model))
    assert list(archive.layers) == ["one"]
    reloaded = load_into(Twice(), archive)
    assert reloaded.one is reloaded.two
    with torch.no_grad():
        assert exact(reloaded(x)) == exact(model(x))


def test_freezing_copies_and_stops_training(zoo, ids, exact):
    prepare(zoo, Compression(weight=Uniform(2)))
    latent = exact(zoo.head.weight)
    frozen = freeze(zoo)
    assert exact(zoo.head.weight) == latent
    assert zoo.training
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert exact(frozen.head.weight) == exact(zoo.head.effective_weight())
    assert set(frozen.state_dict()) == set(zoo.state_dict())


def test_a_float_model_passes_through_unchanged(zoo, ids, exact):
    delivered = pack(freeze(zoo))
    assert exact(delivered(ids)) == exact(zoo.eval()(ids))
    assert {k: exact(v) for k, v in delivered.state_dict().items()} == {k: exact(v) for k, v in zoo.state_dict().items()}


def test_packing_needs_a_frozen_model(zoo):
    prepare(zoo, Compression(weight=Uniform(2)))
    with pytest.raises(SpecError, match=r"Call freeze\(model\) first"):
        pack(zoo)


def test_leftovers_in_half_precision_are_rounded_when_frozen(zoo, ids, tmp_path, write_artifact, exact):
    """The frozen model computes as the reloaded one will; quantized weights and their scales keep every bit."""
    prepare(zoo, Compression(weight=Uniform(4)))
    zoo(ids)
    zoo.eval()
    frozen = freeze(zoo, "float16")
    assert exact(frozen.head.weight) == exact(zoo.head.effective_weight())
    assert exact(frozen.head.bias) == exact(zoo.head.bias.half().float())
    assert exact(frozen.norm.running_var) == exact(zoo.norm.running_var.half().float())
    assert frozen.norm.num_batches_tracked.dtype == torch.int64
    storage = bitstill.Storage(leftovers="float16")
    archive = bitstill.read(write_artifact(tmp_path, zoo, storage))
    assert archive.leftovers["head.bias"].dtype == "float16"
    with torch.no_grad():
        assert exact(load_into(type(zoo)(), archive)(ids)) == exact(frozen(ids))


def test_leftovers_too_large_for_half_precision_are_refused(zoo):
    prepare(zoo, Compression(weight=Uniform(4)))
    zoo.norm.running_var.fill_(1e6)
    assert freeze(zoo).norm.running_var[0] == 1e6
    with pytest.raises(DataError, match=r"norm\.running_var: wanted values up to 65504.*1e\+06.*float32"):
        freeze(zoo, "float16")


def test_quantized_inputs_cannot_be_unpacked(zoo):
    prepare(zoo, Compression(weight=Uniform(8), input=QuantizeInput(8)))
    with pytest.raises(SpecError, match="a quantized input"):
        unpack(pack(freeze(zoo)))


def test_roles_in_prepare(zoo, ids):
    made = prepare(
        zoo, Compression(weight=Binary(), ignore=("role:stem", "role:classifier")), run_once=lambda model: model(ids)
    )
    assert made.quantized == ("conv1.weight", "conv2.weight")
