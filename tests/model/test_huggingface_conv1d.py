"""Hugging Face's Conv1D, a Linear that stores its weight as (in, out)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitstill
from bitstill.model.compressed_layers import kind_of
from bitstill.model.lifecycle import freeze, pack, prepare, unpack
from bitstill.model.restore import load_into
from bitstill.quant.granularity import PerChannel, PerGroup
from bitstill.quant.rules import Binary, Compression, Points, Prune, Ternary, Uniform

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D


@pytest.mark.parametrize("prune", [None, Prune(0.4)])
@pytest.mark.parametrize(
    "spec", [Uniform(3, granularity=PerGroup(5)), Binary(), Ternary(), Points(5, granularity=PerChannel())]
)
def test_it_lives_as_a_linear_of_the_transposed_weight(spec, prune, tmp_path, write_artifact, exact):
    model, x = nn.Sequential(Conv1D(9, 13)), torch.randn(4, 13)
    linear = nn.Sequential(nn.Linear(13, 9))
    with torch.no_grad():
        linear[0].weight.copy_(model[0].weight.T)
        linear[0].bias.copy_(model[0].bias)
    parameter = model[0].weight
    prepare(model, Compression(weight=spec, prune=prune))
    prepare(linear, Compression(weight=spec, prune=prune))
    assert model[0].weight is parameter
    assert exact(model[0].effective_weight().contiguous()) == exact(linear[0].effective_weight())
    model.eval()
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(linear(x), wanted)
        frozen = freeze(model)
        assert frozen[0].weight.shape == (13, 9)
        reloaded = load_into(nn.Sequential(Conv1D(9, 13)), bitstill.read(write_artifact(tmp_path, model)))
        for stage in (frozen, pack(frozen), reloaded):
            torch.testing.assert_close(stage(x), wanted, rtol=1e-6, atol=1e-6)
        assert exact(pack(frozen)[0].packed()) == exact(reloaded[0].packed()) == exact(linear[0].effective_weight())
        plain = unpack(reloaded)
        assert type(plain[0]) is nn.Linear
        assert (plain[0].in_features, plain[0].out_features) == (13, 9)
        torch.testing.assert_close(plain(x), wanted)


def test_gradient_reaches_the_stored_weight():
    model, x = nn.Sequential(Conv1D(9, 13)), torch.randn(4, 13)
    prepare(model, Compression(weight=Uniform(4)))
    model(x).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, x.sum(0)[:, None].expand(13, 9))


def test_a_namesake_is_not_taken_for_it():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2))

    assert kind_of(Conv1D()) is None


def test_a_whole_gpt2_is_compressed_and_delivered(tmp_path, write_artifact, exact):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31,
        n_positions=8,
        n_embd=12,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    model, ids = transformers.GPT2LMHeadModel(config), torch.arange(8)[None] % 31
    assert model.lm_head.weight is model.transformer.wte.weight
    report = prepare(model, Compression(weight=Uniform(4), ignore=("lm_head",)))
    assert model.lm_head.weight is model.transformer.wte.weight, "tied before, tied after"
    assert {"transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.c_fc.weight"} <= set(report.quantized)
    model.eval()
    with torch.no_grad():
        wanted = model(ids).logits
        reloaded = load_into(transformers.GPT2LMHeadModel(config), bitstill.read(write_artifact(tmp_path, model)))
        torch.testing.assert_close(reloaded(ids).logits, wanted, rtol=1e-5, atol=1e-6)
