"""Attention whose operands are quantized: against the same in torch, alone and in networks, by every engine and export."""

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
from bitstill.artifact.reader import read_config
from bitstill.errors import ArtifactError
from bitstill.export.plan import program_of
from bitstill.export.program import Attention, ByText, Embedding, Input, Program, Quantize
from bitstill.export.samples import made_up
from bitstill.hf import attention
from bitstill.kernels.library import library
from bitstill.nn.attention import AttentionTransform
from bitstill.runtime.model import Model
from bitstill.runtime.plan import Layers, plan
from bitstill.specs import Binary, Compression, QuantizeAttention, QuantizeInput
from bitstill.surgery.attention import quantize_attention
from tests.export.test_networks import FAMILIES
from tests.hf import tiny
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
    """Queries, keys and values out of tables, and attention over them."""

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
    rows = [program.do(Quantize(f"attention_transform.{name}", rule, width), each) for name, each in pairs]
    last = Quantize("attention_transform.probabilities", asdict(spec.probabilities), 0)
    program.do(ByText(), program.do(Attention(heads, width, last), *rows))
    return program


def compare(heads, width, spec, texts, length, seed, folder):
    torch.manual_seed(seed)
    network = Alone(heads, width, spec)
    ids, seen = torch.randint(0, 50, (texts, length)), torch.rand(texts, length) < 0.7
    seen[:, seed % length] = True
    network.train()(ids, seen)  # steps take their first values
    bitstill.prepare(network.eval(), Compression(weight=Binary(), targets=("other",)))
    bitstill.save(network, folder)
    found = Model(bitstill.read(folder), program_alone(heads, width, spec), 2)(ids.numpy(), seen.long().numpy())
    wanted = network(ids, seen).detach().numpy()
    wanted[~seen.numpy()] = 0.0
    # A probability at the very edge between two codes may fall to either side: seldom.
    off = (~np.isclose(found, wanted, rtol=1e-4, atol=1e-5)).any(-1)
    assert off.sum() <= max(1, 0.02 * off.size), np.abs(found - wanted).max()


@pytest.mark.parametrize("further", [0, 3])
@pytest.mark.parametrize("products", RULES)
def test_it_is_attention_with_quantized_operands(products, further, engine, tmp_path):
    probabilities = list(RULES)[(list(RULES).index(products) + further) % len(RULES)]
    compare(3, 20, QuantizeAttention(RULES[products], RULES[probabilities]), 3, 19, 0, tmp_path / "a")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(RULES)), st.sampled_from(sorted(RULES)), st.integers(1, 4), st.integers(1, 40), st.integers(1, 5),
    st.integers(1, 40), st.integers(0, 10**6),
)  # fmt: skip
def test_whatever_the_shape_is(products, probabilities, heads, width, texts, length, seed):
    spec = QuantizeAttention(RULES[products], RULES[probabilities])
    with tempfile.TemporaryDirectory() as folder:
        compare(heads, width, spec, texts, length, seed, folder + "/a")


def artifact(kind, folder, products="token", probabilities="token-asymmetric"):
    model = tiny.model(kind, "sdpa")
    attention.use(model)
    quantize_attention(model, QuantizeAttention(RULES[products], RULES[probabilities]), lambda it: it(**tiny.batch()))
    bitstill.prepare(model, Compression(weight=Binary(), targets=("*.layer.*",)))
    model.train()(**tiny.batch())
    bitstill.save(model.eval(), folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_network_says_the_same(kind, engine, tmp_path):
    artifact(kind, tmp_path / "a")
    values = made_up(read_config(tmp_path / "a"), 5, 11, shortest=1)
    found, wanted = bitstill.runtime.load(tmp_path / "a")(**values), in_torch(tmp_path / "a", values)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize("which", RULES)
def test_exports_say_the_same(which, tmp_path):
    artifact("bert", tmp_path / "a", which, which)
    few = RULES[which].bits < 8  # where one rounding to the other side is a lot
    for target, options in (("onnx", {}), ("onnx", {"opset": 23}), ("openvino", {})):
        out = tmp_path / f"{target}{len(options)}"
        compared = bitstill.export_artifact(tmp_path / "a", out, to=target, **options)["compared"]
        assert compared["largest_difference"] <= (0.05 if few else 0.02) * compared["largest_output"]


@pytest.mark.skipif(library() is None, reason="installed without a C compiler: there are no plans")
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("which", RULES)
def test_no_thread_is_too_early(which, many, tmp_path):
    artifact("bert", tmp_path / "a", which, which)
    archive = bitstill.read(tmp_path / "a")
    assert check(plan(program_of(archive), Layers(archive, library()), {}), many) > 20


def test_rules_that_mean_nothing_are_refused(engine, tmp_path):
    artifact("bert", tmp_path / "a")
    archive = bitstill.read(tmp_path / "a")
    key, (layer, *_) = "bitstill_attention", archive.config["bitstill_attention"]
    good = archive.config[key][layer]
    for changed, message in (
        ({layer: {"products": good["products"]}}, f"{layer}: wanted rules for products and probabilities"),
        ({layer: good | {"products": good["products"] | {"bits": 100}}}, "wanted rules for products and probabilities"),
        ({"bert.encoder.layer.7.attention.self": good}, "attention layers of this network, got bert.encoder.layer.7"),
    ):
        with pytest.raises(ArtifactError, match=message):
            program_of(bitstill.artifact.reader.Archive(**{**vars(archive), "config": {**archive.config, key: changed}}))
    per_sample = {layer: good | {"products": good["products"] | {"per": "sample"}}}
    config = {**archive.config, key: per_sample}
    archive = bitstill.artifact.reader.Archive(**{**vars(archive), "config": config})
    with pytest.raises(ArtifactError, match="query: wanted inputs quantized per token or tensor, got per sample"):
        Model(archive, program_of(archive), 1)(np.ones((1, 3), int))
