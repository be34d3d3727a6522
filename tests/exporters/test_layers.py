"""Single layers in ONNX Runtime: the same outputs as in torch, for every kind of weight and input."""

from __future__ import annotations

import tempfile
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.exporters.onnx.lower import lower
from bitstill.program import operations as ops
from bitstill.program.operations import Input, Program
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
from bitstill.quant.inputs import dynamic_asymmetric
from bitstill.quant.rules import Binary, Compression, LearnedStep, Points, Prune, QuantizeInput, SplitBinary, Ternary, Uniform
from tests.tolerance import assert_product_close

QUANTIZERS = {
    "binary": Binary, "ternary": Ternary, "split": SplitBinary, "points5": partial(Points, 5),
    "step2": partial(LearnedStep, 2), "step8": partial(LearnedStep, 8),
    **{f"affine{bits}": partial(Uniform, bits) for bits in range(1, 9)},
    **{f"symmetric{bits}": partial(Uniform, bits, symmetric=True) for bits in (2, 5, 8)},
}  # fmt: skip
GRANULARITIES = {"tensor": PerTensor(), "channel": PerChannel(), "group": PerGroup(5), "bucket": Bucket(7)}
INPUTS = {
    "float": None, "token": QuantizeInput(), "token4": QuantizeInput(bits=4),
    "tensor": QuantizeInput(symmetric=False, per="tensor"), "tensor-symmetric": QuantizeInput(per="tensor"),
    "tensor4": QuantizeInput(bits=4, symmetric=False, per="tensor"), "token-asymmetric": QuantizeInput(symmetric=False),
    "sample": QuantizeInput(per="sample"), "sample-asymmetric": QuantizeInput(per="sample", symmetric=False),
    "clip": QuantizeInput(per="tensor", range="clip"), "clip-asymmetric": QuantizeInput(8, False, "tensor", "clip"),
    "step": QuantizeInput(per="tensor", range="step"), "step-asymmetric": QuantizeInput(4, False, "tensor", "step"),
}  # fmt: skip


def delivered(network, folder, rule, start):
    """The artifact of a network with random weights, and the packed network that it was written from."""
    bitstill.prepare(network, rule)
    network.train()(start)  # learned steps are initialized from the first batch
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith((".low", ".high")):
                parameter.mul_(0.2)  # so that the bounds clip some values
    network.eval()
    bitstill.save(network, folder)
    return bitstill.read(folder), bitstill.pack(bitstill.freeze(network))


def run(lowered, *values):
    """Outputs in ONNX Runtime."""
    session = onnxruntime.InferenceSession(lowered.data, providers=["CPUExecutionProvider"])
    given = {each.name: value for each, value in zip(session.get_inputs(), values, strict=True)}
    return session.run(None, given)[0]


def linear_program(inputs):
    program = Program((Input("x", "float32", ("batch", inputs)),))
    program.do(ops.Linear("0"), "x")
    return program


def convolution_program(channels):
    program = Program((Input("x", "float32", ("batch", channels, "height", "width")),))
    program.do(ops.Convolution("0", 2, 1), "x")
    program.do(ops.Mean(), "v0")
    program.do(ops.Linear("1"), "v1")
    return program


def close(got, wanted):
    np.testing.assert_allclose(got, wanted.numpy(), rtol=2e-5, atol=2e-5 * float(wanted.abs().max() + 1e-6))


@pytest.mark.parametrize("which", INPUTS)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_linear_layer(kind, which, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(19, 6, bias=which != "token"))
    x = torch.randn(5, 19)
    x[2] = 0.0  # a token of zeros has an empty range
    rule = Compression(weight=QUANTIZERS[kind](granularity=PerChannel()), input=INPUTS[which])
    archive, model = delivered(network, tmp_path / "a", rule, x)
    lowered = lower(linear_program(19), archive)
    assert_product_close(run(lowered, x.numpy()), model(x).detach(), x, archive, INPUTS[which])
    by_integers = which not in ("float", "token-asymmetric", "sample-asymmetric", "step-asymmetric") and kind != "points5"
    assert lowered.arithmetic == {"0": "integer" if by_integers else "float"}
    model = onnx.load_model_from_string(lowered.data)
    assert {node.domain for node in model.graph.node} == {""}
    assert any(node.op_type == "MatMulInteger" for node in model.graph.node) == by_integers


@pytest.mark.parametrize("which", ["tensor", "tensor-symmetric", "clip", "step", "token"])
@pytest.mark.parametrize("kind", ["binary", "ternary", "split", "affine3", "symmetric8", "points5"])
def test_pairs_of_quantizing_and_dequantizing_operators(kind, which, tmp_path):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4)), torch.randn(2, 3, 9, 11)
    rule = Compression(weight=QUANTIZERS[kind](granularity=PerChannel()), input=INPUTS["sample" if which == "token" else which])
    bitstill.prepare(network, rule)
    network[1](network[0](x).mean((2, 3)))  # learned steps are initialized from the first batch
    bitstill.save(network.eval(), tmp_path / "a")
    packed = bitstill.pack(bitstill.freeze(network))
    lowered = lower(convolution_program(3), bitstill.read(tmp_path / "a"), products="qdq")
    close(run(lowered, x.numpy()), packed[1](packed[0](x).mean((2, 3))).detach())
    paired = which != "token" and kind not in ("affine3", "points5")
    assert set(lowered.arithmetic.values()) == {"dequantized" if paired else "float"}
    operators = {node.op_type for node in onnx.load_model_from_string(lowered.data).graph.node}
    assert ("DequantizeLinear" in operators) == paired and not operators & {"MatMulInteger", "ConvInteger"}


@pytest.mark.parametrize("which", ["float", "sample", "tensor", "sample-asymmetric", "clip", "step-asymmetric"])
@pytest.mark.parametrize("kind", ["binary", "ternary", "split", "affine2", "symmetric5", "step8"])
def test_a_convolution(kind, which, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=kind != "ternary"), nn.Linear(5, 2))
    x = torch.randn(2, 3, 7, 6) + 0.3

    def forward(layers, value):
        return layers[1](layers[0](value).mean((2, 3)))

    rule = Compression(weight=QUANTIZERS[kind](granularity=PerChannel()), targets=("0",), input=INPUTS[which])
    bitstill.prepare(network, rule)
    forward(network.train(), x)
    bitstill.save(network.eval(), tmp_path / "a")
    model = bitstill.pack(bitstill.freeze(network))
    lowered = lower(convolution_program(3), bitstill.read(tmp_path / "a"))
    close(run(lowered, x.numpy()), forward(model, x).detach())
    float_only = which in ("float", "sample-asymmetric", "step-asymmetric") or kind == "affine2"
    assert lowered.arithmetic["0"] == ("float" if float_only else "integer")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(QUANTIZERS)), st.sampled_from(sorted(GRANULARITIES)), st.sampled_from(["float", "token", "tensor"]),
    st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_whatever_the_shape_and_the_granularity_are(kind, granularity, which, inputs, outputs, pruned, seed):
    torch.manual_seed(seed)
    network, x = nn.Sequential(nn.Linear(inputs, outputs)), torch.randn(3, inputs)
    pruned = pruned and kind not in ("split", "points5")
    rule = Compression(
        weight=QUANTIZERS[kind](granularity=GRANULARITIES[granularity]),
        input=INPUTS[which],
        prune=Prune(0.5) if pruned else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        archive, model = delivered(network, f"{folder}/a", rule, x)
        result = run(lower(linear_program(inputs), archive), x.numpy())
        assert_product_close(result, model(x).detach(), x, archive, INPUTS[which])


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", ["binary", "ternary", "affine3", "affine8", "points5", "split"])
def test_rows_of_a_table_are_unpacked_as_they_are_gathered(kind, granularity, coded, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(30, 13), nn.Linear(13, 2))
    rule = Compression(weight=QUANTIZERS[kind](granularity=GRANULARITIES[granularity]), targets=("0",))
    bitstill.prepare(network, rule)
    bitstill.save(network.eval(), tmp_path / "a", storage=bitstill.Storage(entropy_coding=coded))
    model = bitstill.pack(bitstill.freeze(network))
    program = Program((Input("ids", "int64", ("batch", "length")),))
    program.do(ops.Linear("1"), program.do(ops.Embedding("0"), "ids"))
    lowered = lower(program, bitstill.read(tmp_path / "a"))
    ids = torch.randint(0, 30, (4, 3))
    close(run(lowered, ids.numpy()), model(ids).detach().reshape(12, 2))
    by_rows = granularity in ("channel", "group")
    assert lowered.arithmetic["0"] == ("packed rows" if by_rows else "unpacked table")


def test_layers_that_read_one_value_are_multiplied_at_once(tmp_path):
    torch.manual_seed(0)
    network = nn.ModuleDict({name: nn.Linear(8, 8) for name in "abcd"})
    bitstill.prepare(network, Compression(weight=Binary(), targets=("a", "b", "c"), input=QuantizeInput()))
    bitstill.save(network.eval(), tmp_path / "a")
    program = Program((Input("x", "float32", ("batch", 8)),))
    values = [program.do(ops.Linear(name), "x") for name in "abc"]
    summed = program.do(ops.Add(), program.do(ops.Add(), values[0], values[1]), values[2])
    program.do(ops.Linear("d"), summed)
    lowered = lower(program, bitstill.read(tmp_path / "a"))
    x = torch.randn(4, 8)
    close(run(lowered, x.numpy()), network["d"](network["a"](x) + network["b"](x) + network["c"](x)).detach())
    kinds = [node.op_type for node in onnx.load_model_from_string(lowered.data).graph.node]
    assert kinds.count("MatMulInteger") == kinds.count("QuantizeLinear") == 1


def test_per_tensor_inputs_are_what_one_operator_makes_of_them(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 4))
    x = torch.randn(6, 16)
    archive, _ = delivered(network, tmp_path / "a", Compression(weight=Binary(), input=QuantizeInput()), x)
    lowered = lower(linear_program(16), archive, per_tensor=True)
    kinds = {node.op_type for node in onnx.load_model_from_string(lowered.data).graph.node}
    assert "DynamicQuantizeLinear" in kinds and "QuantizeLinear" not in kinds
    coarse = dynamic_asymmetric(x, bits=8, per="tensor")
    close(
        run(lowered, x.numpy()),
        torch.nn.functional.linear(coarse, torch.from_numpy(archive.weight("0")), network[0].bias).detach(),
    )
