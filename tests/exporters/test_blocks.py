"""ONNX Runtime's own operator for packed weights."""

from __future__ import annotations

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.errors import ArtifactError
from bitstill.exporters.onnx.block_matmul import block_of
from bitstill.exporters.onnx.lower import lower
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import Binary, Compression, LearnedStep, Points, Prune, QuantizeInput, SplitBinary, Ternary, Uniform
from tests.exporters.test_layers import delivered, linear_program, run
from tests.exporters.test_networks import encoder_artifact, network_artifact


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["binary", "ternary", "symmetric", "step", "pruned"]),
    bits=st.integers(2, 8),
    granularity=st.sampled_from([PerTensor(), PerChannel(), PerGroup(16), PerGroup(64)]),
    width=st.sampled_from([16, 64, 100, 128, 200, 384]),
    seed=st.integers(0, 9),
)
def test_it_says_what_the_layer_says_but_for_8_bit_inputs(tmp_path_factory, kind, bits, granularity, width, seed):
    torch.manual_seed(seed)
    network, x = nn.Sequential(nn.Linear(width, 12, bias=bool(seed % 2))), torch.randn(5, width)
    quantizer = {
        "binary": Binary(granularity), "ternary": Ternary(granularity), "pruned": Ternary(granularity),
        "symmetric": Uniform(bits, symmetric=True, granularity=granularity), "step": LearnedStep(bits),
    }[kind]  # fmt: skip
    rule = Compression(weight=quantizer, prune=Prune(0.5) if kind == "pruned" else None)
    archive, model = delivered(network, tmp_path_factory.mktemp("b") / "a", rule, x)
    lowered = lower(linear_program(width), archive, products="blocks")
    assert lowered.arithmetic == {"0": "packed blocks"}
    wanted = model(x).detach()
    # Rounding moves a value by up to half of 1/127 of the largest magnitude in its block.
    step = x.abs().max() / 127 / 2
    bound = step * archive_sum(archive) + 1e-4 * wanted.abs().max()
    assert bool(((torch.from_numpy(run(lowered, x.numpy())) - wanted).abs() <= bound).all())


def archive_sum(archive):
    """Largest sum of absolute weights over the rows."""
    return torch.from_numpy(archive.weight("0")).abs().sum(1).max()


@pytest.mark.parametrize("weight", [SplitBinary(), Points(4), Uniform(4), Binary(Bucket(7)), Binary(PerGroup(24))], ids=str)
def test_what_does_not_fit_stays_as_it_is(weight, tmp_path):
    network, x = nn.Sequential(nn.Linear(48, 6)), torch.randn(5, 48)
    archive, model = delivered(network, tmp_path / "a", Compression(weight=weight), x)
    assert block_of(archive.layers["0"]) is None
    lowered = lower(linear_program(48), archive, products="blocks")
    assert lowered.arithmetic == {"0": "float"}
    torch.testing.assert_close(torch.from_numpy(run(lowered, x.numpy())), model(x).detach(), rtol=1e-4, atol=1e-4)


def test_an_encoder(tmp_path):
    encoder_artifact("bert", tmp_path / "a", QuantizeInput())
    report = bitstill.export(tmp_path / "a", tmp_path / "o", activations="blocks")
    assert list(report["arithmetic"].values()).count("packed blocks") == 18
    assert report["inputs_quantized"][0]["by"] == "MatMulNBits" and report["compared"]["largest_difference"] > 0
    model = onnx.load(tmp_path / "o" / "model.onnx")
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 21, "com.microsoft": 1}


def test_a_network_without_such_layers(tmp_path):
    network_artifact("digits-student", 4, tmp_path / "a")
    with pytest.raises(ArtifactError, match="wanted a layer that fits blocks, got none"):
        bitstill.export(tmp_path / "a", tmp_path / "o", activations="blocks")
    assert not (tmp_path / "o").exists()
