"""Attention with quantized operands, against torch, alone and in networks, in every engine and export."""

from __future__ import annotations

import tempfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.artifact.config_keys import ATTENTION
from bitstill.artifact.reader import Archive, read_config
from bitstill.errors import ArtifactError
from bitstill.exporters.onnx.lower import lower
from bitstill.hf import attention_scores as attention
from bitstill.model.attention_operands import AttentionTransform, quantize_attention
from bitstill.program.from_artifact import program_of
from bitstill.program.operations import Attention, ByText, Embedding, Input, Program, Quantize, Transform
from bitstill.program.samples import random_inputs
from bitstill.quant.rules import Binary, Compression, QuantizeAttention, QuantizeInput
from bitstill.runtime.layer_weights import LayerWeights
from bitstill.runtime.library import library
from bitstill.runtime.model import Model
from bitstill.runtime.plan import plan
from tests.exporters.test_networks import BYTES, FAMILIES
from tests.hf import tiny
from tests.pairwise import pairwise
from tests.runtime.conftest import ENGINES
from tests.runtime.test_networks import in_torch
from tests.runtime.test_plan import check

OPERANDS = ("query", "key", "value")
RULES = {
    "token": QuantizeInput(),
    "token-asymmetric": QuantizeInput(8, symmetric=False),
    "tensor": QuantizeInput(6, per="tensor"),
    "tensor-asymmetric": QuantizeInput(8, per="tensor", symmetric=False),
    "clip": QuantizeInput(4, per="tensor", range="clip"),
    "step": QuantizeInput(4, per="tensor", range="step"),
    "step-asymmetric": QuantizeInput(2, per="tensor", range="step", symmetric=False),
}


class Alone(nn.Module):
    """Attention whose queries, keys and values come from tables."""

    def __init__(self, heads, width, spec):
        super().__init__()
        self.heads, self.width = heads, width
        self.tables = nn.ModuleDict({name: nn.Embedding(50, heads * width) for name in OPERANDS})
        self.add_module("attention_transform", AttentionTransform(spec))
        self.other = nn.Linear(8, 8)  # something to compress

    def forward(self, ids, seen):
        operands = [self.tables[name](ids).unflatten(2, (self.heads, self.width)).transpose(1, 2) for name in OPERANDS]
        return attention.attention(self, *operands, seen[:, None, None, :])[0].flatten(2)


def program_alone(heads, width, spec):
    texts = ("batch", "length")
    program = Program((Input("input_ids", "int64", texts), Input("attention_mask", "int64", texts)), "last_hidden_state")
    rule, rows = asdict(spec.products), [program.do(Embedding(f"tables.{name}"), "input_ids") for name in OPERANDS]
    pairs = zip(OPERANDS, rows, strict=True)
    rows = [program.do(Quantize(Transform(f"attention_transform.{name}", rule), width), each) for name, each in pairs]
    last = Transform("attention_transform.probabilities", asdict(spec.probabilities))
    program.do(ByText(), program.do(Attention(heads, width, last), *rows))
    return program


def compare(heads, width, spec, texts, length, seed, folder):
    torch.manual_seed(seed)
    network = Alone(heads, width, spec)
    ids, seen = torch.randint(0, 50, (texts, length)), torch.rand(texts, length) < 0.7
    seen[:, seed % length] = True
    network.train()(ids, seen)  # steps are initialized here
    bitstill.prepare(network.eval(), Compression(weight=Binary(), targets=("other",)))
    bitstill.save(network, folder)
    found = Model(bitstill.read(folder), program_alone(heads, width, spec), 2)(ids.numpy(), seen.long().numpy())
    wanted = network(ids, seen).detach().numpy()
    wanted[~seen.numpy()] = 0.0
    # A probability on the edge between two codes may round either way, but rarely.
    off = (~np.isclose(found, wanted, rtol=1e-4, atol=1e-5)).any(-1)
    assert off.mean() <= 0.02, np.abs(found - wanted).max()


@pytest.mark.parametrize(
    ("products", "probabilities", "engine"), pairwise(list(RULES), list(RULES), ENGINES), indirect=["engine"]
)
def test_it_is_attention_with_quantized_operands(products, probabilities, engine, tmp_path):
    compare(3, 20, QuantizeAttention(RULES[products], RULES[probabilities]), 3, 19, 0, tmp_path / "a")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(RULES)), st.sampled_from(sorted(RULES)), st.integers(1, 4), st.integers(1, 90), st.integers(1, 5),
    st.integers(1, 130), st.integers(0, 10**6),
)  # fmt: skip
def test_whatever_the_shape_is(products, probabilities, heads, width, texts, length, seed):
    spec = QuantizeAttention(RULES[products], RULES[probabilities])
    with tempfile.TemporaryDirectory() as folder:
        compare(heads, width, spec, texts, length, seed, folder + "/a")


def artifact(kind, folder, products="token", probabilities="token-asymmetric", input=None, seed=0):
    model = tiny.model(kind, "sdpa", seed)
    attention.use(model)
    quantize_attention(model, QuantizeAttention(RULES[products], RULES[probabilities]), lambda it: it(**tiny.batch()))
    bitstill.prepare(model, Compression(weight=Binary(), targets=("*.layer.*",), input=input))
    model.train()(**tiny.batch())
    bitstill.save(model.eval(), folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_network_says_the_same(kind, engine, tmp_path):
    artifact(kind, tmp_path / "a")
    values = random_inputs(read_config(tmp_path / "a"), 5, 11, shortest=1)
    found, wanted = bitstill.runtime.load(tmp_path / "a")(**values), in_torch(tmp_path / "a", values)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize("which", RULES)
def test_exports_say_the_same(which, tmp_path):
    """The export itself compares, and would write nothing if outputs differed."""
    for seed, inputs in enumerate((None, BYTES)):
        folder = tmp_path / f"a{seed}"
        artifact("bert", folder, which, which, inputs, seed)
        for target, options in (("onnx", {}), ("onnx", {"opset": 23}), ("openvino", {})):
            report = bitstill.export(folder, tmp_path / f"{target}{len(options)}{seed}", to=target, **options)
            assert len(report["attention_quantized"]) == 3 and report["compared"]["tolerance"] > 0.001


def test_operands_stay_in_float_on_demand(tmp_path):
    artifact("bert", tmp_path / "a", input=BYTES)
    plain = bitstill.export(tmp_path / "a", tmp_path / "o", to="openvino", activations="float")
    assert plain["attention_quantized"] == {} and plain["inputs_quantized"] == []


@pytest.mark.skipif(library() is None, reason="installed without a C compiler: there are no plans")
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("which", RULES)
def test_no_thread_is_too_early(which, many, tmp_path):
    artifact("bert", tmp_path / "a", which, which)
    archive = bitstill.read(tmp_path / "a")
    assert check(plan(program_of(archive), LayerWeights(archive, library()), {}), many) > 20


def changed(archive, **config):
    return Archive(archive.folder, {**archive.config, **config}, archive.layers, archive.tensors)


def test_settings_that_mean_nothing_are_refused(engine, tmp_path):
    artifact("bert", tmp_path / "a")
    archive = bitstill.read(tmp_path / "a")
    layer, *_ = archive.config[ATTENTION]
    good = archive.config[ATTENTION][layer]

    def products(**fields):
        return {layer: good | {"products": good["products"] | fields}}

    for rules, message in (
        (["x"], "rules by attention layer, got"),
        ("on", "rules by attention layer, got on"),
        ({layer: "float"}, f"{layer}: wanted rules for products and probabilities"),
        ({layer: {"products": good["products"]}}, f"{layer}: wanted rules for products and probabilities"),
        (products(bits=100), "wanted rules for products and probabilities"),
        ({"bert.encoder.layer.7.attention.self": good}, "attention layers of this network, got bert.encoder.layer.7"),
    ):
        with pytest.raises(ArtifactError, match=message):
            program_of(changed(archive, **{ATTENTION: rules}))
    ids = np.ones((1, 3), int)
    for rules, message in (
        (products(per="sample"), "query: wanted inputs quantized per token or tensor, got per sample"),
        (products(per="tensor", range="clip"), "missing .*attention_transform.key.low"),
        (products(per="tensor", range="step"), "missing .*attention_transform.key.ready"),
    ):
        odd = changed(archive, **{ATTENTION: rules})
        with pytest.raises(ArtifactError, match=message):
            Model(odd, program_of(odd), 1)(ids)
        with pytest.raises(ArtifactError, match=message):
            lower(program_of(odd), odd)
    for heads in (-2, 0, 3, "2"):
        with pytest.raises(ArtifactError, match="heads that divide the width"):
            program_of(changed(archive, num_attention_heads=heads))
