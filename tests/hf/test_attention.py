"""Attention that exposes its scores, against transformers' own attention."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from torch import nn
from transformers import AttentionMaskInterface

from bitstill.errors import MatchError
from bitstill.hf import attention_scores as attention
from bitstill.losses.taps import tap
from bitstill.model.attention_operands import SCORES
from bitstill.model.blocks import blocks
from bitstill.train.step import run

from . import tiny

SHAPES = {"padded": (9, 4, 7, 1), "equal": (6, 6)}
FLOAT32_SOFTMAX = {"atol": 1e-5, "rtol": 1e-5}
"""Some models' eager attention computes the softmax in float32 whatever the dtype: 2**-24, over some hundred operations."""
QUERY_KEY = {"distilbert": ("q_lin", "k_lin"), "vit": ("q_proj", "k_proj"), "gpt2": ("c_attn", "c_attn")}


@pytest.fixture(autouse=True)
def _float64():
    """float64 makes comparisons independent of the processor's summation order; the tolerance is torch's default, 1e-7."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def hidden(model, inputs):
    with torch.no_grad():
        return model.base_model(**inputs).last_hidden_state


def used(name, **settings):
    """A tiny model that computes attention with `hf.attention`."""
    model = tiny.model(name, "sdpa", **settings)
    attention.use(model)
    return model


def inputs_of(name, lengths=SHAPES["padded"]):
    return {"pixel_values": tiny.image_task().train.inputs["pixel_values"]} if name == "vit" else tiny.batch(lengths)


def scores_by_hand(name, model, inputs, index):
    """q k^T / sqrt(width) of one block, from the outputs of its query and key layers."""
    names, kept, handles = QUERY_KEY.get(name, ("query", "key")), {}, []
    for path, module in blocks(model).modules[index].named_modules():
        leaf = path.rpartition(".")[2]
        if leaf in names:
            handles.append(module.register_forward_hook(lambda _m, _a, output, leaf=leaf: kept.__setitem__(leaf, output)))
    model(**inputs)
    for handle in handles:
        handle.remove()
    q, k = (kept[leaf] for leaf in names)
    if name == "gpt2":
        q, k, _ = q.split(16, dim=-1)
    heads = [x.unflatten(-1, (2, 8)).transpose(1, 2) for x in (q, k)]
    return torch.einsum("nhqw,nhkw->nhqk", *heads) / math.sqrt(8)


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stock", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [*tiny.DISPATCHED, "vit", "gpt2"])
def test_outputs_are_those_of_stock_attention(name, stock, shape, tapped):
    inputs = inputs_of(name, SHAPES[shape])
    wanted = hidden(tiny.model(name, stock), inputs)
    model = used(name)
    assert model.config._attn_implementation == attention.NAME
    with tap(model, ["scores:0", "scores:1", "scores:2"] if tapped else []) as found:
        given = hidden(model, inputs)
    assert len(found) == (3 if tapped else 0)
    real = inputs.get("attention_mask", torch.ones(wanted.shape[:2])).bool()
    torch.testing.assert_close(given[real], wanted[real], **FLOAT32_SOFTMAX)


@pytest.mark.parametrize("name", ["deberta", "deberta-v3", "albert"])
def test_the_others_compute_what_they_always_did(name):
    inputs = tiny.batch()
    torch.testing.assert_close(hidden(used_or_own(name), inputs), hidden(tiny.model(name), inputs), **FLOAT32_SOFTMAX)


def used_or_own(name):
    model = tiny.model(name)
    attention.use(model)
    assert model.config._attn_implementation == ("eager" if name.startswith("deberta") else attention.NAME)
    return model


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("name", tiny.DISPATCHED)
def test_what_stands_in_the_padding_changes_nothing(name, tapped):
    """Fails if no mask function is registered for the attention: transformers then makes no mask at all."""
    model, inputs = used(name), tiny.batch()
    real = inputs["attention_mask"].bool()
    noise = torch.randint(5, len(tiny.VOCABULARY), real.shape)
    if name == "roberta":  # which counts positions by ids that are not padding
        inputs["position_ids"] = 1 + real.cumsum(1) * real
    with tap(model, ["scores:0", "scores:2"] if tapped else []):
        one = hidden(model, inputs)
        other = hidden(model, {**inputs, "input_ids": torch.where(real, inputs["input_ids"], noise)})
    assert not torch.equal(one[~real], other[~real])
    torch.testing.assert_close(one[real], other[real])


def test_the_mask_function_is_registered():
    attention.use(tiny.model("bert"))
    assert attention.NAME in AttentionMaskInterface._global_mapping


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("name", [*tiny.DISPATCHED, "vit", "gpt2"])
def test_tapped_scores_are_query_times_key_over_the_root_of_the_width(name, index):
    model, inputs = used(name), inputs_of(name)
    with torch.no_grad():
        with tap(model, [f"scores:{index}"]) as found:
            model(**inputs)
        wanted = scores_by_hand(name, model, inputs, index)
    if name == "gpt2":  # scores hidden by the causal mask are not imitated
        wanted = wanted.tril()
    torch.testing.assert_close(found[f"scores:{index}"], wanted)


@pytest.mark.parametrize("name", [*tiny.DISPATCHED, "vit"])
def test_the_softmax_of_tapped_scores_is_what_transformers_calls_attentions(name):
    inputs = inputs_of(name)
    with torch.no_grad():
        wanted = tiny.model(name, "eager")(**inputs, output_attentions=True).attentions
        with tap(model := used(name), ["scores:1"]) as found:
            model(**inputs)
    mask = inputs.get("attention_mask")
    scores = found["scores:1"] if mask is None else found["scores:1"].masked_fill(mask[:, None, None] == 0, -torch.inf)
    rows = slice(None) if mask is None else mask.bool()
    given, wanted = scores.softmax(-1).transpose(1, 2), wanted[1].transpose(1, 2)
    torch.testing.assert_close(given[rows], wanted[rows], **FLOAT32_SOFTMAX)


@pytest.mark.parametrize("name", [*tiny.DISPATCHED, "vit"])
def test_a_gradient_flows_through_tapped_scores(name):
    inputs, grads = inputs_of(name), []
    for by_hand in (False, True):
        model = used(name)
        if by_hand:
            scores = scores_by_hand(name, model, inputs, 1)
        else:
            with tap(model, ["scores:1"]) as found:
                model(**inputs)
            scores = found["scores:1"]
        scores.square().mean().backward()
        grads.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    query, key = QUERY_KEY.get(name, ("query", "key"))
    first, second = (blocks(model).name + f".{n}." for n in (1, 2))
    assert all(any(n.startswith(first) and f".{leaf}.weight" in n for n in grads[0]) for leaf in (query, key))
    assert not any(n.startswith(second) for n in grads[0])
    for n, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][n])


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_logits_have_the_same_gradient_tapped_or_not(name):
    grads = []
    for names in ([], ["scores:0", "scores:1", "scores:2"]):
        model = used(name)
        with tap(model, names):
            model(**tiny.batch()).logits.square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads)


def test_dropout_is_applied_while_training_and_only_then():
    rate = 0.5
    model = used("bert", attention_probs_dropout_prob=rate, hidden_dropout_prob=0.0, classifier_dropout=0.0)
    with torch.no_grad(), tap(model, ["scores:0"]):
        still = [model.eval()(**tiny.batch()).logits for _ in range(2)]
        moved = [model.train()(**tiny.batch()).logits for _ in range(2)]
    assert torch.equal(*still) and not torch.equal(*moved)


def test_dropout_drops_probabilities_and_scales_up_the_others():
    module = nn.Module().train()
    module.__dict__[SCORES] = lambda scores: None
    q, k = torch.randn(2, 1, 2, 64, 4)
    v = torch.eye(64).expand(1, 2, 64, 64)  # so that the output is the probabilities themselves
    wanted, _ = attention.attention(module, q, k, v, None)
    found, _ = attention.attention(module, q, k, v, None, dropout=0.25)
    kept = found != 0
    assert 0.7 < float(kept.float().mean()) < 0.8
    torch.testing.assert_close(found[kept], wanted[kept] / 0.75)
    torch.testing.assert_close(attention.attention(module.eval(), q, k, v, None, dropout=0.25)[0], wanted)


def test_a_float_mask_is_added_and_a_bool_one_forbids():
    module, allowed = nn.Module(), torch.rand(2, 1, 5, 5) < 0.6
    allowed |= torch.eye(5, dtype=torch.bool)
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    wanted, _ = attention.attention(module, q, k, v, allowed, is_causal=False)
    module.__dict__[SCORES] = lambda scores: None
    for mask in (allowed, added):
        torch.testing.assert_close(attention.attention(module, q, k, v, mask)[0], wanted)
    scaled, _ = attention.attention(module, 2 * q, k, v, allowed, scaling=0.25)
    torch.testing.assert_close(scaled, wanted)


def traces(model):
    return [
        module for module in model.modules() if SCORES in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    ]


@pytest.mark.parametrize("breaks", [False, True])
def test_a_tap_leaves_nothing_behind(breaks):
    model, names = used("bert"), ["scores:0", "scores:1", "hidden:0", "hidden:3"]
    before = list(model.state_dict())
    expected = pytest.raises(KeyError) if breaks else contextlib.nullcontext()
    with expected, tap(model, names) as found:
        assert traces(model)
        model(**tiny.batch() | ({"input_ids": {}["broken"]} if breaks else {}))
    assert not traces(model) and list(found) == ([] if breaks else ["hidden:0", "scores:0", "scores:1", "hidden:3"])
    assert list(model.state_dict()) == before and not traces(copy.deepcopy(model))


def test_a_name_that_is_wrong_leaves_nothing_behind():
    model = used("bert")
    with (
        pytest.raises(MatchError, match=r"wanted one of the 3 blocks in 'bert.encoder.layer', got 'scores:3'"),
        tap(model, ["scores:0", "scores:3"]),
    ):
        pass
    assert not traces(model)


def test_only_the_block_that_is_asked_tells_its_scores():
    model = used("bert")
    with torch.no_grad():
        with tap(model, ["scores:0", "scores:1", "scores:2"]) as every:
            model(**tiny.batch())
        with tap(model, ["scores:1"]) as one:
            model(**tiny.batch())
    assert set(one) == {"scores:1"}
    torch.testing.assert_close(one["scores:1"], every["scores:1"])
    assert not torch.equal(every["scores:0"], every["scores:1"])


def test_two_models_are_tapped_at_once_without_mixing():
    one, other = used("bert"), used("bert", seed=1)
    with torch.no_grad(), tap(one, ["scores:0"]) as first, tap(other, ["scores:0"]) as second:
        one(**tiny.batch())
        other(**tiny.batch())
    assert not torch.equal(first["scores:0"], second["scores:0"])


@pytest.mark.parametrize("name", ["deberta", "deberta-v3"])
def test_scores_of_an_attention_of_its_own_are_refused(task, name):
    model = used_or_own(name)
    with pytest.raises(MatchError, match=r"got 'scores:0'.*DeBERTa"):
        run(model, task, task.sample(), ("scores:0",))
    assert set(run(model, task, task.sample(), ("hidden:1",)).features) == {"hidden:1"}


@pytest.mark.parametrize("name", [*tiny.TEXT, "vit", "gpt2"])
def test_hidden_states_are_those_that_transformers_returns(name):
    inputs = inputs_of(name)
    names = [f"hidden:{index}" for index in range(4)]
    with torch.no_grad():
        wanted = tiny.model(name)(**inputs, output_hidden_states=True).hidden_states
        model = tiny.model(name)
        attention.use(model)
        with tap(model, names) as found:
            model(**inputs)
    assert len(wanted) == 4 and list(found) == names
    real = inputs.get("attention_mask", torch.ones(wanted[0].shape[:2])).bool()
    last = 3 if name == "gpt2" else 4  # GPT-2's last hidden state comes after its final norm
    for index in range(last):
        torch.testing.assert_close(found[f"hidden:{index}"][real], wanted[index][real], **FLOAT32_SOFTMAX)


@pytest.mark.parametrize("name", ["hidden:4", "scores:3", "scores:-1", "hidden:-1", "hidden:x"])
def test_layers_that_are_not_there_are_refused(name):
    with pytest.raises(MatchError), tap(used("bert"), [name]):
        pass
