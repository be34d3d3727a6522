"""Attention products with quantized operands: computed, trained, delivered and read back, in every way of loading."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import bitstill
from bitstill.deliver.deliver import save
from bitstill.errors import ArtifactError, MatchError, SpecError
from bitstill.hf import attention_scores as attention
from bitstill.model.attention_operands import AttentionTransform, attention_record, quantize_attention
from bitstill.model.blocks import blocks
from bitstill.model.lifecycle import freeze, pack, prepare, uncompressed, unpack
from bitstill.quant.inputs import dynamic_asymmetric, dynamic_symmetric
from bitstill.quant.rules import Binary, Compression, QuantizeAttention, QuantizeInput
from bitstill.train.optim import AdamW, parameter_groups
from tests.signing import edit_signed

from . import tiny

CLIP = QuantizeInput(8, per="tensor", range="clip")
STEP = QuantizeInput(4, per="tensor", range="step")
SPECS = {
    "8 bits": QuantizeAttention(),
    "per tensor": QuantizeAttention(QuantizeInput(per="tensor"), QuantizeInput(per="tensor", symmetric=False)),
    "clip": QuantizeAttention(CLIP, QuantizeInput(8, per="tensor", range="clip", symmetric=False)),
    "4 bits": QuantizeAttention(STEP, QuantizeInput(4, per="tensor", range="step", symmetric=False)),
}


def network(name: str = "bert", seed: int = 0) -> nn.Module:
    model = tiny.model(name, "sdpa", seed)
    attention.use(model)
    return model


def run(model: nn.Module) -> torch.Tensor:
    return model(**tiny.batch()).logits


@pytest.mark.parametrize("name", tiny.DISPATCHED)
def test_every_block_quantizes_its_operands(name):
    model = network(name)
    before = run(model)
    names = quantize_attention(model, QuantizeAttention(), run)
    assert len(names) == len(blocks(model)) and not torch.equal(run(model), before)
    assert torch.allclose(run(model), before, atol=0.3), "8 bits change little"
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, AttentionTransform))


def test_what_is_computed_is_attention_with_quantized_operands():
    torch.manual_seed(0)
    layer = nn.Module()
    layer.add_module("attention_transform", AttentionTransform(QuantizeAttention()))
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))  # no code depends on rounding in a sum
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None, :].expand(2, 1, 5, 5)
    output, _ = attention.attention(layer.eval(), q, k, v, mask)
    q, k, v = (dynamic_symmetric(x, bits=8, per="token") for x in (q, k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(4)
    probabilities = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    wanted = torch.einsum("bhij,bhjd->bihd", dynamic_asymmetric(probabilities, bits=8, per="token"), v)
    torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_is_delivered_and_read_back_by_every_way_of_loading(spec, tmp_path):
    model = network()
    prepare(model, Compression(weight=Binary(), targets=("bert.encoder.*",), input=QuantizeInput()))
    quantize_attention(model, spec, run)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(model.train()).square().sum().backward()  # one step, so that learned values move
    optimizer.step()
    model.eval()
    save(model, tmp_path / "out", tokenizer=tiny.tokenizer())
    with torch.no_grad():
        wanted = run(model)
        for loaded in (bitstill.load(tmp_path / "out"), AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")):
            assert torch.equal(run(loaded), wanted)
            assert len(attention_record(loaded)) == 3
        assert torch.equal(run(pack(freeze(model))), wanted)


def test_a_network_that_is_handed_in_is_made_to_quantize_or_refused(tmp_path):
    model = network()
    prepare(model, Compression(weight=Binary(), targets=("bert.encoder.*",)))
    quantize_attention(model, QuantizeAttention(), run)
    save(model, tmp_path / "out", tokenizer=tiny.tokenizer())
    with torch.no_grad():
        assert torch.equal(run(bitstill.load(tmp_path / "out", model=tiny.model("bert", "sdpa"))), run(model))
    other = tiny.model("bert")
    other.set_attn_implementation = lambda name: None
    with pytest.raises(ArtifactError, match="whose attention can be quantized"):
        bitstill.load(tmp_path / "out", model=other)


def test_what_is_learned_belongs_to_the_quantizers():
    model = network()
    quantize_attention(model, SPECS["clip"], run)
    *_, learned = parameter_groups(model.named_parameters(), AdamW(learned_lr_scale=3.0))
    assert learned["lr_scale"] == 3.0 and learned["weight_decay"] == 0.0 and len(learned["params"]) == 3 * 4 * 2


def test_the_float_network_is_what_it_was():
    model = network()
    before = run(model)
    prepare(model, Compression(weight=Binary(), targets=("bert.encoder.*",)))
    quantize_attention(model, QuantizeAttention(), run)
    plain = uncompressed(model)
    assert not attention_record(plain) and torch.equal(run(plain), before)
    with pytest.raises(SpecError, match="attention with float operands"):
        unpack(pack(freeze(model)))


def test_attention_of_another_kind_says_so_and_stays_as_it_was():
    model = tiny.model("deberta")
    attention.use(model)
    with pytest.raises(MatchError, match="0 of 3 blocks"):
        quantize_attention(model, QuantizeAttention(), run)
    eager = tiny.model("bert")
    with pytest.raises(MatchError, match="0 of 3 blocks"):
        quantize_attention(eager, QuantizeAttention(), run)
    assert not attention_record(eager)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: {"nowhere": next(iter(record.values()))},
        lambda record: {name: {"products": {"bits": 99}} for name in record},
        lambda record: {name: {"colours": {}} for name in record},
        lambda record: dict.fromkeys(record, 3),
    ],
)
def test_a_record_that_was_edited_is_refused(change, tmp_path):
    model = network()
    prepare(model, Compression(weight=Binary(), targets=("bert.encoder.*",)))
    quantize_attention(model, QuantizeAttention(), run)
    save(model, tmp_path / "out", tokenizer=tiny.tokenizer())
    edit_signed(tmp_path / "out", config=lambda config: config.update(bitstill_attention=change(config["bitstill_attention"])))
    with pytest.raises(ArtifactError, match="a record of quantized attention"):
        bitstill.load(tmp_path / "out")


def test_the_recipe_trains_and_delivers_it(tmp_path):
    data = tiny.write_csv(tmp_path / "data")
    recipe = bitstill.recipes.BinaryBERT(steps=1, validations=1, batch_size=8, attention=SPECS["4 bits"])
    teacher = str(tiny.saved(tmp_path / "bert", "bert"))
    text = bitstill.data.TextOptions(max_length=tiny.LIMIT)
    result = bitstill.compress(recipe, "text", {"teacher": teacher}, data=data, text=text, settings=tiny.QUIET)
    assert len(attention_record(result.model)) == 3
    assert not attention_record(result.models["small"]) and not attention_record(result.models["teacher"])
    copied = copy.deepcopy(result.model)
    assert torch.equal(run(copied), run(result.model))
