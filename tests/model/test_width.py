"""Removing whole channels: the network shrinks, computes as if they were absent, and reloads from its file."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import bitstill
from bitstill.artifact.config_keys import RESIZED
from bitstill.data.networks import build
from bitstill.errors import ArtifactError, MatchError, SpecError
from bitstill.model.blocks import blocks
from bitstill.model.resize import changes, resize, sizes
from bitstill.model.width import attention_layers, reduce_width
from bitstill.recipes import QuantizedDistillation

pytest.importorskip("torch_pruning")
INPUTS = {"res8": (1, 20, 12), "resnet-20": (3, 16, 16), "digits-student": (1, 8, 8)}


def example(name: str) -> torch.Tensor:
    return torch.randn(3, *INPUTS[name], generator=torch.Generator().manual_seed(0))


def narrow(model: nn.Module, x: torch.Tensor, fraction: float = 0.5, **options: Any) -> None:
    reduce_width(model, lambda network: network(x), fraction, keep=("classifier",), **options)


@pytest.mark.parametrize("name", INPUTS)
def test_every_layer_but_the_classifier_loses_its_share_and_the_network_runs(name):
    model, x = build(name), example(name)
    before = copy.deepcopy(model)
    narrow(model, x)
    for path, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and path != "classifier":
            old = before.get_submodule(path)
            assert module.weight.shape[0] == int(old.weight.shape[0] * 0.5), path
    assert model(x).shape == before(x).shape
    assert not any(p.grad is not None for p in model.parameters()) and all(p.requires_grad for p in model.parameters())


def test_what_is_left_are_the_heaviest_neurons_unchanged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[[1, 4]] *= 0.01
        model[2].weight[:, [1, 4]] *= 0.01
    before = copy.deepcopy(model)
    x = torch.randn(4, 5)
    reduce_width(model, lambda network: network(x), 1 / 3, keep=("2",))
    left = [0, 2, 3, 5]
    assert torch.equal(model[0].weight, before[0].weight[left]) and torch.equal(model[0].bias, before[0].bias[left])
    assert torch.equal(model[2].weight, before[2].weight[:, left])
    with torch.no_grad():  # as if the neurons had never fired
        before[2].weight[:, [1, 4]] = 0.0
    torch.testing.assert_close(model(x), before(x))


def test_widths_are_multiples_if_asked():
    model, x = build("resnet-20"), example("resnet-20")
    narrow(model, x, 0.3, multiple=8)
    assert {module.weight.shape[0] % 8 for module in model.modules() if isinstance(module, nn.Conv2d)} == {0}


@pytest.mark.parametrize("name", INPUTS)
def test_a_fresh_network_is_resized_by_the_record(name):
    model, x = build(name, seed=1), example(name)
    narrow(model, x)
    fresh = build(name, seed=2)
    record = json.loads(json.dumps(model.__dict__[RESIZED]))
    resize(fresh, record)
    resize(fresh, record)
    assert not changes(sizes(model), sizes(fresh))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model.eval()(x))


@pytest.mark.parametrize("bits", [4, None])
def test_a_narrow_student_is_delivered_and_read_back_by_name_and_again_compressed(tmp_path, bits):
    recipe = QuantizedDistillation(bits=bits, epochs=0.25, channels=0.5, float_epochs=0.25, kd_weight=0.5)
    settings = bitstill.train.Settings(progress=False, device="cpu")
    models: dict[str, Any] = {"teacher": build("digits-teacher"), "student": build("digits-student")}
    bitstill.compress(recipe, "digits", models, out=tmp_path / "out", settings=settings)
    model = bitstill.load(tmp_path / "out")
    assert model.classifier.in_features == 24 and model.hidden[0].out_features == 24
    assert bitstill.read(tmp_path / "out").config[RESIZED]["hidden.0"]["settings"]["out_features"] == 24
    with torch.no_grad():
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    if bits is None:
        again = replace(recipe, bits=2, channels=0.0, float_epochs=0)
        models = {"teacher": build("digits-teacher"), "student": str(tmp_path / "out")}
        bitstill.compress(again, "digits", models, out=tmp_path / "again", settings=settings)
        assert bitstill.load(tmp_path / "again").classifier.in_features == 24


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta", "vit"])
def test_heads_and_inner_neurons_of_transformers_leave_and_nothing_else(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tests.hf import tiny

    model = tiny.model(family).eval()
    batch = tiny.batch() if family != "vit" else {"pixel_values": tiny.image_task().train.inputs["pixel_values"][:2]}
    batch = {
        key: value for key, value in batch.items() if key != "labels" and (family, key) != ("distilbert", "token_type_ids")
    }
    config = model.config
    reduce_width(model, lambda network: network(**batch), 0.5, keep=("classifier",))
    for each in attention_layers(model):
        assert each.heads == config.num_attention_heads // 2
        assert {layer.out_features for layer in each.layers} == {config.hidden_size // 2}
    narrow = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name in model.__dict__[RESIZED]
    }
    wide = getattr(config, "intermediate_size", None) or config.hidden_dim
    assert {module.out_features for module in narrow.values()} == {config.hidden_size // 2, wide // 2, config.hidden_size}
    pattern = f"{blocks(model).name}.*"
    bitstill.prepare(model, bitstill.quant.Compression(weight=bitstill.quant.Ternary(), targets=(pattern,)))
    with torch.no_grad():
        wanted = model(**batch).logits
        name = next(name for name in narrow if model.get_submodule(name).out_features == wide // 2)
        trained = model.get_submodule(name).effective_weight()
        bitstill.save(model, tmp_path / "out")
        loaded = bitstill.load(tmp_path / "out")
        assert torch.equal(loaded.get_submodule(name).packed(), trained)
        torch.testing.assert_close(loaded(**batch).logits, wanted)
        auto = (
            transformers.AutoModelForImageClassification if family == "vit" else transformers.AutoModelForSequenceClassification
        )
        found = auto.from_pretrained(tmp_path / "out")
        assert torch.equal(found(**batch).logits, loaded(**batch).logits)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"nowhere": {}}, "a module 'nowhere'"),
        ({"classifier": {"settings": {"training": 1}}}, "classifier.training as a whole number"),
        ({"classifier": {"settings": {"forward": 3}}}, "classifier.forward as a whole number"),
        ({"classifier": {"shapes": {"weight": [10, 10**9]}}}, "no larger than the original"),
        ({"classifier": {"shapes": {"weight": [10]}}}, "no larger than the original"),
        ({"classifier": {"shapes": {"weight": "wide"}}}, "no larger than the original"),
        ({"classifier": {"shapes": {"wight": [1]}}}, "no larger than the original"),
    ],
)
def test_records_that_do_not_fit_are_refused(record, message):
    with pytest.raises(ArtifactError, match=message):
        resize(build("digits-student"), record)


@pytest.mark.parametrize("fraction", [1.0, -0.1])
def test_fractions_that_cannot_be_are_refused(fraction):
    with pytest.raises(SpecError, match="a fraction of channels"):
        narrow(build("res8"), example("res8"), fraction)


def test_a_network_without_inner_layers_is_refused():
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(MatchError, match="a layer that can be narrowed, got none"):
        reduce_width(model, lambda network: network(torch.randn(2, 4)), 0.5, keep=("0",))


def test_by_gradient_what_the_loss_would_miss_least_goes():
    """Neurons with large weights but small gradients go first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    gradients = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        model[0].weight[:4] *= 10
        model[2].weight[:, :4] *= 10
    for name in ("0.weight", "0.bias"):
        gradients[name][:4] = 0.0
    gradients["2.weight"][:, :4] = 0.0
    kept = model[0].weight[4:].detach().clone()
    reduce_width(model, lambda m: m(torch.randn(2, 4)), 0.5, keep=("2",), gradients=gradients)
    assert torch.equal(model[0].weight, kept), "by magnitude it would be the other half"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fraction_that_leaves_a_layer_nothing_is_refused_and_one_that_leaves_one_channel_is_not():
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))

    x, model = torch.randn(2, 4), network()
    reduce_width(model, lambda net: net(x), 0.9, keep=("4",))
    assert [len(model[place].weight) for place in (0, 2, 4)] == [1, 2, 3]
    with pytest.raises(MatchError, match=r"Sequential, 0: .*0.95 of 10 to be removed, which leaves none"):
        reduce_width(network(), lambda net: net(x), 0.95, keep=("4",))
    with pytest.raises(MatchError, match=r"Sequential, 0: .*0.5 of 10 to be removed in multiples of 8"):
        reduce_width(network(), lambda net: net(x), 0.5, keep=("4",), multiple=8)
