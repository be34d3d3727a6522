"""Single layers on every engine: the same outputs as in torch, for every kind of weight and input."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.errors import DataError
from bitstill.quant.granularity import PerChannel
from bitstill.quant.rules import Compression, Prune
from bitstill.runtime.library import library
from bitstill.runtime.model import Model
from tests.exporters.test_layers import GRANULARITIES, INPUTS, QUANTIZERS, close, convolution_program, delivered, linear_program
from tests.exporters.test_networks import BYTES
from tests.pairwise import pairwise
from tests.runtime.conftest import ENGINES
from tests.tolerance import assert_product_close

CONVOLVED = ["binary", "ternary", "split", "affine2", "symmetric5", "step8"]
CONVOLVED_INPUTS = ["float", "sample", "tensor", "sample-asymmetric", "clip", "step-asymmetric"]
GROUPED, GROUPED_INPUTS = ["affine4", "symmetric8", "split", "step2"], ["token", "tensor", "step"]


@pytest.mark.parametrize(("kind", "which", "engine"), pairwise(list(QUANTIZERS), list(INPUTS), ENGINES), indirect=["engine"])
def test_a_linear_layer(kind, which, engine, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(19, 6, bias=which != "token"))
    x = torch.randn(5, 19)
    x[2] = 0.0  # a token of zeros has an empty range
    rule = Compression(weight=QUANTIZERS[kind](), input=INPUTS[which])
    archive, packed = delivered(network, tmp_path / "a", rule, x)
    assert_product_close(Model(archive, linear_program(19), 2)(x.numpy()), packed(x).detach(), x, archive, INPUTS[which])


@pytest.mark.parametrize(("kind", "which", "engine"), pairwise(CONVOLVED, CONVOLVED_INPUTS, ENGINES), indirect=["engine"])
def test_a_convolution(kind, which, engine, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=kind != "ternary"), nn.Linear(5, 2))
    x = torch.randn(3, 3, 7, 6) + 0.3
    rule = Compression(weight=QUANTIZERS[kind](), targets=("0",), input=INPUTS[which])
    bitstill.prepare(network, rule)
    network[0].train()(x)
    bitstill.save(network.eval(), tmp_path / "a")
    packed = bitstill.pack(bitstill.freeze(network))
    found = Model(bitstill.read(tmp_path / "a"), convolution_program(3), 2)(x.numpy())
    close(found, packed[1](packed[0](x).mean((2, 3))).detach())


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(QUANTIZERS)), st.sampled_from([*sorted(GRANULARITIES), "group32"]), st.sampled_from(sorted(INPUTS)),
    st.integers(1, 100), st.integers(1, 40), st.booleans(), st.integers(1, 70), st.integers(0, 10**6),
)  # fmt: skip
def test_whatever_the_shape_and_the_granularity_are(kind, granularity, which, inputs, outputs, pruned, rows, seed):
    torch.manual_seed(seed)
    network, x = nn.Sequential(nn.Linear(inputs, outputs)), torch.randn(rows, inputs)
    cut = bitstill.quant.PerGroup(32) if granularity == "group32" else GRANULARITIES[granularity]
    prune = Prune(0.5) if pruned and inputs * outputs > 1 else None
    rule = Compression(weight=QUANTIZERS[kind](granularity=cut), input=INPUTS[which], prune=prune)
    with tempfile.TemporaryDirectory() as folder:
        archive, packed = delivered(network, folder + "/a", rule, x)
        model = Model(archive, linear_program(inputs), 2)
        assert library() is None or model.engine != "numpy"
        assert_product_close(model(x.numpy()), packed(x).detach(), x, archive, INPUTS[which])


@pytest.mark.parametrize(("kind", "which", "engine"), pairwise(GROUPED, GROUPED_INPUTS, ENGINES), indirect=["engine"])
def test_groups_of_inputs_with_a_scale_each_are_multiplied_as_integers(kind, which, engine, tmp_path):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(96 + 20, 21)), torch.randn(40, 96 + 20)
    rule = Compression(weight=QUANTIZERS[kind](granularity=bitstill.quant.PerGroup(32)), input=INPUTS[which])
    archive, packed = delivered(network, tmp_path / "a", rule, x)
    model = Model(archive, linear_program(116), 2)
    assert_product_close(model(x.numpy()), packed(x).detach(), x, archive, INPUTS[which])
    if engine != "numpy":
        (matrix,) = model._engine.layers._matrices.values()
        assert matrix.by_integers and matrix.struct.groups == 4


def test_inputs_that_are_next_to_a_tie_between_two_codes(engine, tmp_path):
    network, rows, inputs = nn.Sequential(nn.Linear(192, 3)), 50, 192
    rng = np.random.default_rng(0)
    most = rng.uniform(0.1, 10, (rows, 1)).astype(np.float32)
    x = (rng.integers(-127, 127, (rows, inputs)).astype(np.float32) + np.float32(0.5)) * (most / np.float32(127))
    for _ in range(3):  # below the tie, above it, or on it
        x = np.nextafter(x, rng.choice([-np.inf, np.inf], x.shape).astype(np.float32))
    x[:, :1] = most
    inputs_of_torch, rule = torch.from_numpy(x), Compression(weight=bitstill.quant.Binary(), input=BYTES)
    archive, packed = delivered(network, tmp_path / "a", rule, inputs_of_torch)
    assert_product_close(Model(archive, linear_program(inputs), 1)(x), packed(inputs_of_torch).detach(), x, archive, BYTES)


@pytest.mark.parametrize("kind", ["symmetric8", "affine8", "binary"])
def test_sums_that_32_bits_cannot_hold(kind, engine, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40_000, 2))
    nn.init.uniform_(network[0].weight, 0.5, 1.0)
    eight = bitstill.quant.Uniform(8, granularity=PerChannel())
    quantizer = {"symmetric8": replace(eight, symmetric=True), "affine8": replace(eight, symmetric=False)}
    rule = Compression(weight=quantizer.get(kind, QUANTIZERS["binary"]()), input=bitstill.quant.QuantizeInput(symmetric=False))
    x = torch.ones(3, 40_000)
    archive, packed = delivered(network, tmp_path / "a", rule, x)
    result = Model(archive, linear_program(40_000), 2)(x.numpy())
    assert_product_close(result, packed(x).detach(), x, archive, rule.input)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none_are_refused(strange, engine, tmp_path):
    """Codes cannot represent them, and would give a wrong value."""
    network = nn.Sequential(nn.Linear(19, 6))
    archive, _ = delivered(
        network, tmp_path / "a", Compression(weight=QUANTIZERS["binary"](), input=INPUTS["token"]), torch.randn(5, 19)
    )
    x = np.zeros((5, 19))
    x[1, 3] = strange
    with pytest.raises(DataError, match="finite numbers"):
        Model(archive, linear_program(19), 2)(x)
    with pytest.raises(DataError, match="an array"):
        Model(archive, linear_program(19), 2)([[1.0], [2.0, 3.0]])


def test_an_empty_batch(engine, tmp_path):
    network = nn.Sequential(nn.Linear(19, 6))
    archive, _ = delivered(network, tmp_path / "a", Compression(weight=QUANTIZERS["binary"]()), torch.randn(2, 19))
    found = Model(archive, linear_program(19), 1)(np.zeros((0, 19), np.float32))
    assert found.shape == (0, 6)
