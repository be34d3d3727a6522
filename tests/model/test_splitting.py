"""Splitting a ternary model: its outputs stay the same, and everything else keeps working."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitstill.artifact.reader import read
from bitstill.artifact.size import size_report
from bitstill.artifact.writer import Storage, write
from bitstill.errors import DataError, SpecError
from bitstill.model.contents import contents_of
from bitstill.model.lifecycle import freeze, prepare, report, uncompressed
from bitstill.model.restore import load_into
from bitstill.model.split_layers import split_model
from bitstill.quant.granularity import PerChannel, PerGroup
from bitstill.quant.rules import Binary, Clipped, Compression, Prune, QuantizeInput, SplitBinary, Ternary
from bitstill.train.optim import AdamW, parameter_groups


def zoo() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(20, 12, padding_idx=0), nn.Conv1d(7, 6, 3), nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 4, 3), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip


IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 0], [19, 18, 17, 17, 0, 1, 1]])


@pytest.mark.parametrize("iterations", [0, 10])
@pytest.mark.parametrize("prune", [None, Prune(0.5)], ids=["dense", "pruned"])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(5)], ids=repr)
def test_every_kind_of_layer_computes_what_it_did(granularity, prune, iterations):
    model = zoo()
    prepare(model, Compression(weight=Ternary(granularity, iterations=iterations), prune=prune))
    latent = {name: module.weight.detach().clone() for name, module in model.named_modules() if hasattr(module, "weight")}
    before = model(IDS)
    assert split_model(model) == ("0", "1", "3", "5")
    assert torch.allclose(model(IDS), before, atol=1e-5)
    for name, weight in latent.items():
        layer = model.get_submodule(name)
        assert layer.weight_transform.quantizer == SplitBinary(granularity)
        assert torch.allclose(layer.weight + layer.weight_transform.latents["second"], weight, atol=1e-6)


def test_inputs_are_quantized_once_for_both_planes():
    """Bai et al.'s code copies the quantizer into each branch; here the layer keeps its own, learned bounds included."""
    model = nn.Sequential(nn.Linear(8, 4))
    prepare(model, Compression(weight=Ternary(), input=QuantizeInput(per="tensor", range="clip")))
    transform = model[0].input_transform
    split_model(model)
    assert (
        model[0].input_transform is transform and len([n for n, _ in model.named_parameters() if "input_transform" in n]) == 2
    )


def test_the_float_network_has_the_sum_of_both():
    model = zoo()
    prepare(model, Compression(weight=Ternary()))
    latent = model[5].weight.detach().clone()
    split_model(model)
    assert torch.allclose(uncompressed(model)[5].weight, latent, atol=1e-6)


def test_the_row_of_padding_stays_what_it_is():
    model = nn.Sequential(nn.Embedding(20, 12, padding_idx=3))
    prepare(model, Compression(weight=Ternary()))
    split_model(model)
    model(torch.tensor([[1, 3, 5], [7, 3, 3]])).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.abs().sum(1).nonzero().flatten().tolist() == [1, 5, 7]
    model(torch.tensor([[1, 2]])).sum().backward()


def test_a_second_weight_that_is_not_finite_is_refused():
    model = nn.Sequential(nn.Linear(8, 4))
    prepare(model, Compression(weight=Ternary()))
    split_model(model)
    model[0].weight_transform.latents["second"].data[0, 0] = torch.nan
    with pytest.raises(DataError, match="second of its quantizer"):
        freeze(model)


def test_both_halves_learn_as_weights_do():
    model = nn.Sequential(nn.Linear(8, 4))
    prepare(model, Compression(weight=Ternary()))
    split_model(model)
    second = model[0].weight_transform.latents["second"]
    model(torch.randn(3, 8)).square().sum().backward()
    assert second.grad is not None and torch.equal(second.grad, model[0].weight.grad) and bool((second.grad != 0).any())
    weights, *_ = parameter_groups(model.named_parameters(), AdamW(weight_decay=0.5))
    assert weights["weight_decay"] == 0.5 and {id(p) for p in weights["params"]} == {id(model[0].weight), id(second)}
    assert {row.parameter: row.action for row in report(model).rows}["0.weight_transform.latents.second"] == "quantized"


def test_only_the_rows_in_use_take_part():
    model = nn.Sequential(nn.Embedding(20, 12))
    prepare(model, Compression(weight=Ternary()))
    split_model(model)
    model(torch.tensor([[3, 5, 3]])).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.abs().sum(1).nonzero().flatten().tolist() == [3, 5]
    assert torch.equal(model(IDS), model[0].effective_weight()[IDS])


def test_it_packs_as_two_planes_of_one_bit_and_the_size_says_so(tmp_path):
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    blank = copy.deepcopy(model)
    prepare(model, Compression(weight=Ternary(scale_dtype="float16")))
    split_model(model)
    write(tmp_path, contents_of(freeze(model)), {}, Storage())
    archive = read(tmp_path)
    reloaded, x = load_into(blank, archive), torch.randn(3, 64)
    assert torch.equal(reloaded(x), model.eval()(x))
    size = size_report(archive)
    (layer,) = size.layers
    assert size.nominal_bits == 2.0 and layer.bytes["codes"] == 2 * 64 * 32 // 8 and layer.bytes["scales"] == 2 * 32 * 2


def test_tied_weights_are_split_once_and_stay_tied():
    model = nn.ModuleDict({"words": nn.Embedding(10, 8), "out": nn.Linear(8, 10, bias=False)})
    model["out"].weight = model["words"].weight
    prepare(model, Compression(weight=Ternary()))
    before = model["out"].effective_weight()
    split_model(model)
    words, out = model["words"].weight_transform, model["out"].weight_transform
    assert words.latents["second"] is out.latents["second"] and model["words"].weight is model["out"].weight
    assert torch.allclose(model["out"].effective_weight(), before, atol=1e-6)
    model["out"].weight_transform.quantizer = Ternary()
    model["words"].weight_transform.quantizer = Ternary(PerGroup(4))
    with pytest.raises(SpecError, match="one quantizer for a shared weight"):
        split_model(model)


def test_what_is_clipped_is_split_as_it_is_seen():
    model = nn.Sequential(nn.Linear(8, 4))
    prepare(model, Compression(weight=Ternary(gradient=Clipped(0.1))))
    x = torch.randn(3, 8)
    before = model(x)
    split_model(model)
    assert torch.allclose(model(x), before, atol=1e-6)


def test_what_cannot_be_split_says_so():
    model = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(SpecError, match="a model with ternary layers"):
        split_model(model)
    prepare(model, Compression(weight=Ternary(learned_scale=True)))
    with pytest.raises(SpecError, match="scales that follow the weights"):
        split_model(model)


def test_split_binary_on_any_weight_starts_with_what_the_first_plane_leaves_over():
    model = nn.Sequential(nn.Linear(8, 4))
    weight = model[0].weight.detach().clone()
    one = copy.deepcopy(model)
    prepare(model, Compression(weight=SplitBinary()))
    prepare(one, Compression(weight=Binary()))
    errors = [(m[0].effective_weight() - weight).square().sum() for m in (model, one)]
    assert errors[0] < errors[1]
