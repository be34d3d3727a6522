"""OpenVINO's own files, run there: they give the artifact's outputs, from low-bit constants."""

from __future__ import annotations

import json
from functools import partial

import openvino
import pytest
import torch
from torch import nn

import bitstill
from bitstill.errors import SpecError
from bitstill.exporters.openvino import open_model, write_openvino
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import Binary, Compression, LearnedStep, Points, Prune, SplitBinary, Ternary, Uniform
from tests.exporters.test_layers import INPUTS, close, convolution_program, delivered, linear_program
from tests.exporters.test_networks import FAMILIES, NETWORKS, encoder_artifact, network_artifact

KINDS = {
    "binary": (Binary, "u1"), "ternary": (Ternary, "u2"), "split": (SplitBinary, "u1 + u1"),
    "points": (partial(Points, 5), "u4"),
    "affine3": (partial(Uniform, 3), "u4"), "symmetric8": (partial(Uniform, 8, symmetric=True), "u8"),
    "affine8": (partial(Uniform, 8), "u8"), "step4": (partial(LearnedStep, 4), "u4"),
}  # fmt: skip


def run(program, archive, folder, *values):
    types = write_openvino(program, archive, folder / "model.xml")
    named = {given.name: value for given, value in zip(program.inputs, values, strict=True)}
    return open_model(folder / "model.xml")(named), types


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(8), PerGroup(5), Bucket(7)], ids=str)
@pytest.mark.parametrize("prune", [None, Prune(0.5)], ids=["dense", "pruned"])
@pytest.mark.parametrize("width", [24, 19])
@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_layer(kind, width, prune, granularity, tmp_path):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(width, 12)), torch.randn(16, width)
    quantizer, constant = KINDS[kind]
    rule = Compression(weight=quantizer(granularity=granularity), prune=prune)
    try:
        archive, model = delivered(network, tmp_path / "a", rule, x)
    except SpecError:
        assert prune is not None and kind == "split"
        return
    given, types = run(linear_program(width), archive, tmp_path, x.numpy())
    close(given, model(x).detach())
    few = set(types["0"].split(" + "))
    if isinstance(granularity, Bucket):
        assert types == {"0": "f32"}
    elif prune is None:
        assert few == {"u8"} if width % 2 and constant in ("u2", "u4") else types == {"0": constant}
    assert isinstance(granularity, Bucket) or few <= {node.get_element_type().get_type_name() for node in constants(tmp_path)}


def constants(folder):
    model = openvino.Core().read_model(folder / "model.xml")
    return [node for node in model.get_ops() if node.get_type_name() == "Constant"]


@pytest.mark.parametrize("which", INPUTS)
def test_inputs_are_quantized_as_in_training(which, tmp_path):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(24, 6)), torch.randn(5, 24)
    x[2] = 0.0
    archive, model = delivered(network, tmp_path / "a", Compression(weight=Binary(), input=INPUTS[which]), x)
    close(run(linear_program(24), archive, tmp_path, x.numpy())[0], model(x).detach())


@pytest.mark.parametrize("kind", ["binary", "ternary", "symmetric8"])
def test_pruned_convolutions(kind, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4))
    x = torch.randn(2, 3, 9, 11)
    rule = Compression(weight=KINDS[kind][0](), prune=Prune(0.5), targets=("0",))
    bitstill.prepare(network, [rule, Compression(weight=Binary(), targets=("1",))])
    bitstill.save(network.eval(), tmp_path / "a")
    packed = bitstill.pack(bitstill.freeze(network))
    wanted = packed[1](packed[0](x).mean((2, 3))).detach()
    close(run(convolution_program(3), bitstill.read(tmp_path / "a"), tmp_path, x.numpy())[0], wanted)


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_encoder_says_the_same(kind, tmp_path):
    encoder_artifact(kind, tmp_path / "a")
    report = bitstill.export(tmp_path / "a", tmp_path / "o", to="openvino")
    assert report["compared"]["largest_difference"] <= 0.05 * report["compared"]["largest_output"]
    assert set(report["constants"].values()) == {"u1"}
    assert report["file_bytes"] == sum((tmp_path / "o" / f"model.{end}").stat().st_size for end in ("xml", "bin"))
    left = bitstill.export(tmp_path / "a", tmp_path / "f", to="openvino", activations="float")
    assert left["inputs_quantized"] == [] and report["inputs_quantized"] and left["activations"] == "float"
    assert left == json.loads((tmp_path / "f" / "export.json").read_text())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_convolutional_network_says_the_same(name, tmp_path):
    network_artifact(name, 4, tmp_path / "a")
    compared = bitstill.export(tmp_path / "a", tmp_path / "o", to="openvino")["compared"]
    assert compared["same_label"] == 1.0 and compared["largest_difference"] <= 1e-4 * compared["largest_output"]


@pytest.mark.parametrize(("options", "message"), [
    ({"activations": "per-tensor"}, "activations: wanted activations that openvino has, got 'per-tensor'"),
    ({"opset": 21}, "opset: wanted an opset with to='onnx', got to='openvino'"),
    ({"data": "x"}, "data: wanted data with on_task"),
    ({"to": "gguf", "on_task": True}, "on_task: wanted to='onnx' or 'openvino'"),
])  # fmt: skip
def test_options_that_it_does_not_have(options, message, tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    with pytest.raises(SpecError, match=message):
        bitstill.export(tmp_path / "a", tmp_path / "o", **{"to": "openvino", **options})
