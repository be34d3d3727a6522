"""Attention relations, against a slow version with loops, and between models with different heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitstill.errors import DataError
from bitstill.hf import attention_scores as attention
from bitstill.losses.features import AttentionRelation, Pair, attention_relations
from bitstill.losses.taps import Output, tap
from bitstill.model.attention_operands import HEADS
from tests.hf import tiny

PAIR = (Pair("heads:0", "heads:0"),)


def slow(ours: Tensor, theirs: Tensor, lengths: list[int], relation_heads: int) -> float:
    """Slow version: one sample, one head, one query at a time."""
    total = 0.0
    for part in range(3):
        values = []
        for sample, length in enumerate(lengths):
            flat = [x[part, sample].transpose(0, 1).flatten(1)[:length].double() for x in (ours, theirs)]
            for head in range(relation_heads):
                cut = [x.chunk(relation_heads, 1)[head] for x in flat]
                for query in range(length):
                    p, q = ((x @ x[query] / math.sqrt(x.shape[1])).softmax(0) for x in cut)
                    values.append(float((q * (q / p).log()).sum()))
        total += sum(values) / len(values)
    return total


def loss(ours: Tensor, theirs: Tensor, lengths: list[int] | None, relation_heads: int) -> Tensor:
    positions = None if lengths is None else torch.arange(ours.shape[3]) < torch.tensor(lengths)[:, None]
    student, teacher = (Output(torch.zeros(1), {"heads:0": x}, positions) for x in (ours, theirs))
    return AttentionRelation(PAIR, relation_heads)(student, teacher, torch.zeros(1), 0.0)


@pytest.mark.parametrize("relation_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[5, 5], [5, 2], [1, 4]], ids=str)
def test_it_is_the_mean_over_real_queries(lengths, relation_heads):
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 2, 2, 5, 4), torch.randn(3, 2, 4, 5, 6)  # other heads and another width
    assert float(loss(ours, theirs, lengths, relation_heads)) == pytest.approx(slow(ours, theirs, lengths, relation_heads))
    if lengths == [5, 5]:
        assert torch.allclose(loss(ours, theirs, None, relation_heads), loss(ours, theirs, lengths, relation_heads))


def test_what_stands_at_padding_does_not_matter():
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 2, 2, 5, 4), torch.randn(3, 2, 2, 5, 4)
    wanted = loss(ours, theirs, [5, 3], 2)
    changed = ours.clone()
    changed[:, 1, :, 3:] = 100.0
    changed.requires_grad_(True)
    value = loss(changed, theirs, [5, 3], 2)
    assert torch.allclose(value, wanted)
    value.backward()
    assert bool((changed.grad[:, 1, :, 3:] == 0).all()) and bool((changed.grad[:, 0] != 0).any())


def test_equal_relations_cost_nothing_also_where_heads_are_turned_around():
    torch.manual_seed(0)
    theirs = torch.randn(3, 2, 2, 5, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    assert float(loss(theirs @ rotation, theirs, [5, 3], 2)) == pytest.approx(0, abs=1e-5)
    assert float(loss(2 * theirs, theirs, [5, 3], 2)) > 0.01


def test_a_width_that_cannot_be_cut_is_refused():
    with pytest.raises(DataError, match="a width divisible by 3 relation heads"):
        attention_relations(torch.randn(2, 2, 5, 4), 3, None)


@pytest.mark.parametrize("name", tiny.DISPATCHED)
@pytest.mark.parametrize("with_scores", [False, True])
def test_a_tap_gives_queries_keys_and_values(name, with_scores):
    model = tiny.model(name, "sdpa")
    attention.use(model)
    inputs = tiny.batch()
    with torch.no_grad(), tap(model, ["heads:1", *(["scores:1"] if with_scores else [])]) as found:
        model(**inputs)
    q, k, v = found["heads:1"]
    assert q.shape == k.shape == v.shape == (4, 2, 9, 8)
    if with_scores:
        assert torch.allclose(q @ k.transpose(2, 3) / math.sqrt(8), found["scores:1"], atol=1e-5)
    assert not any(HEADS in module.__dict__ for module in model.modules())
