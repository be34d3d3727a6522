"""The networks: published sizes, and the round trip through config.json."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitstill.data.networks import MODELS, ConvNet, ConvNetConfig, ResNetConfig, architecture_of, build, from_architecture
from bitstill.errors import ArtifactError, SpecError


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"), [("polino-teacher", 5_346_142), ("polino-student-1", 1_000_235), ("polino-student-2", 318_415)]
)
def test_the_papers_networks_have_its_parameter_counts(name, count):
    assert parameters(build(name)) == count


@pytest.mark.parametrize(("name", "count"), [("res8", 110_307), ("res8-narrow", 19_905)])
def test_res8_has_the_published_parameter_counts(name, count):
    assert parameters(build(name)) == count


def test_res8_computes_what_its_published_code_computes():
    """The loop of honk's model, written with functions on the same weights."""
    model = build("res8-narrow", seed=1, classes=10).train()
    x = torch.randn(4, 1, 60, 40)
    convolutions = [model.stem, *(c for block in model.blocks for c in (block.conv1, block.conv2))]
    norms = [n for block in model.blocks for n in (block.norm1, block.norm2)]
    y, old = x, None
    for index, convolution in enumerate(convolutions):
        out = F.relu(F.conv2d(y, convolution.weight, padding=1))
        if index == 0:
            out = F.avg_pool2d(out, (4, 3))
            old = out
        if index > 0 and index % 2 == 0:
            y = out + old
            old = y
        else:
            y = out
        if index > 0:
            y = F.batch_norm(y, None, None, training=True, eps=norms[index - 1].eps)
    wanted = F.linear(y.flatten(2).mean(2), model.classifier.weight, model.classifier.bias)
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize(("name", "millions", "digits"), [("polino-student-3", 0.112, 3), ("resnet-20", 0.27, 2)])
def test_sizes_quoted_in_millions(name, millions, digits):
    assert round(parameters(build(name)) / 1e6, digits) == millions


@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_network_has_logits_for_its_classes_and_comes_back_from_its_config(name):
    model = build(name)
    config = architecture_of(model)
    again = from_architecture(json.loads(json.dumps(config)))
    assert architecture_of(again) == config
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in again.state_dict().items()} == shapes
    again.load_state_dict(model.state_dict())
    size = MODELS[name].size if isinstance(MODELS[name], ConvNetConfig) else 32
    x = torch.randn(2, getattr(MODELS[name], "channels", 1), size, size)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), again.eval()(x)) and model(x).shape == (2, MODELS[name].classes)


def test_a_residual_net_is_counted_by_hand():
    """Depth 8, width 2, one channel: stem 18, norm 4; blocks 2-2, 2-4 (projection), 4-8 (projection); classifier 8 x 3 + 3."""
    config = ResNetConfig(8, 2, 1, 3)
    block_1 = 2 * (2 * 2 * 9) + 2 * 4
    block_2 = 2 * 4 * 9 + 4 * 4 * 9 + 2 * 8 + 2 * 4
    block_3 = 4 * 8 * 9 + 8 * 8 * 9 + 2 * 16 + 4 * 8
    model = from_architecture({"architecture": "resnet", "arguments": {"depth": 8, "width": 2, "channels": 1, "classes": 3}})
    assert parameters(model) == 18 + 4 + block_1 + block_2 + block_3 + 27
    assert architecture_of(model)["arguments"] == {
        "depth": config.depth, "width": config.width, "channels": config.channels, "classes": config.classes,
    }  # fmt: skip


@pytest.mark.parametrize("depth", [9, 19])
def test_a_depth_that_does_not_exist_is_refused(depth):
    with pytest.raises(SpecError, match="a depth of 6 n"):
        ResNetConfig(depth)


def test_initial_weights_depend_on_seed_role_and_name_only():
    def weight(*arguments):
        return build(*arguments).state_dict()["classifier.weight"]

    torch.manual_seed(5)
    wanted = weight("digits-student", 3, "student")
    torch.manual_seed(6)
    state = torch.get_rng_state()
    assert torch.equal(weight("digits-student", 3, "student"), wanted)
    assert torch.equal(torch.get_rng_state(), state), "building a network draws nothing from the caller's generator"
    assert not torch.equal(weight("digits-student", 4, "student"), wanted)
    assert not torch.equal(weight("digits-student", 3, "teacher"), wanted)


def test_an_unknown_network_is_named_with_the_nearest():
    with pytest.raises(SpecError, match=r"got 'resnet20'. Did you mean 'resnet-20'\?"):
        build("resnet20")


def test_a_users_network_is_described_and_refused_with_what_to_do():
    config = architecture_of(nn.Sequential(nn.Linear(2, 2)))
    assert config["architecture"] is None and config["class"].endswith("Sequential")
    with pytest.raises(ArtifactError, match=r"Sequential.*bitstill\.load\(folder, model=network\)"):
        from_architecture(config)


def test_a_subclass_is_not_mistaken_for_one_of_bitstills():
    """Its forward may differ, and config.json could not record that."""

    class Mine(ConvNet):
        def forward(self, x):
            return -super().forward(x)

    config = architecture_of(Mine(ConvNetConfig(((2,),), 3, (), channels=1, size=4)))
    assert config["architecture"] is None and config["class"].endswith("Mine")


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "resnet"},
        {"architecture": "resnet", "arguments": {"depth": 9}},
        {"architecture": "resnet", "arguments": {"deep": 8}},
        {"architecture": "resnet", "arguments": {"depth": 8, "width": -1}},
        {"architecture": "conv-net", "arguments": {"blocks": [[4]], "kernel": "3", "hidden": []}},
        {"architecture": ["resnet"], "arguments": {}},
        {"architecture": "os.system", "arguments": {}},
    ],
)
def test_an_edited_config_is_an_artifact_error(config):
    with pytest.raises(ArtifactError, match=r"config\.json"):
        from_architecture(config)
