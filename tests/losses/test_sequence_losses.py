"""Losses of padded sequences, against loops that visit real positions only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitstill.errors import DataError, SpecError
from bitstill.losses.features import AttentionScoreMSE, FeatureMSE, Pair, masked_mse
from bitstill.losses.taps import Output

NO_LABELS = torch.zeros(0, dtype=torch.int64)
HIDDEN, SCORES = FeatureMSE((Pair("h", "h"),)), AttentionScoreMSE((Pair("s", "s"),))
LOSSES = {"h": HIDDEN, "s": SCORES}


def slow_hidden(ours: Tensor, theirs: Tensor, lengths: list[int]) -> float:
    total, count = 0.0, 0
    for n, length in enumerate(lengths):
        for t in range(length):
            for w in range(ours.shape[2]):
                total += float(ours[n, t, w] - theirs[n, t, w]) ** 2
                count += 1
    return total / count


def slow_scores(ours: Tensor, theirs: Tensor, lengths: list[int]) -> float:
    total, count = 0.0, 0
    for n, length in enumerate(lengths):
        for head in range(ours.shape[1]):
            for query in range(length):
                for key in range(length):
                    total += float(ours[n, head, query, key] - theirs[n, head, query, key]) ** 2
                    count += 1
    return total / count


SLOW = {"h": slow_hidden, "s": slow_scores}


def features(kind: str, batch: int, positions: int) -> Tensor:
    return torch.randn((batch, positions, 3) if kind == "h" else (batch, 2, positions, positions))


def mask_of(lengths: list[int], positions: int) -> Tensor:
    return torch.arange(positions) < torch.tensor(lengths).unsqueeze(1)


def padding(kind: str, mask: Tensor) -> Tensor:
    """Mask of the padding in `features`, broadcast over width or heads."""
    return ~mask.unsqueeze(-1) if kind == "h" else ~(mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1)


def loss_of(kind: str, ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
    return LOSSES[kind](Output(NO_LABELS, {kind: ours}, mask), Output(NO_LABELS, {kind: theirs}, mask), NO_LABELS, 0.0)


@pytest.mark.parametrize("kind", LOSSES)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_mean_is_over_real_positions_whatever_padding_holds(kind, lengths, seed):
    torch.manual_seed(seed)
    ours, theirs = features(kind, len(lengths), 5), features(kind, len(lengths), 5)
    mask = mask_of(lengths, 5)
    found = loss_of(kind, ours, theirs, mask)
    assert float(found) == pytest.approx(SLOW[kind](ours, theirs, lengths), rel=1e-5)
    where = padding(kind, mask).expand_as(ours)
    others = [x.where(~where, torch.randn_like(x) * 1e4) for x in (ours, theirs)]
    assert torch.equal(loss_of(kind, *others, mask), found), "not one bit of it depends on padding"


@pytest.mark.parametrize("kind", LOSSES)
def test_longer_padding_changes_nothing(kind):
    """A batch is padded to its longest sample: the other samples in it must not matter."""
    lengths = [3, 1, 2]
    ours, theirs = features(kind, 3, 6), features(kind, 3, 6)
    short = [x[:, :3] if kind == "h" else x[:, :, :3, :3] for x in (ours, theirs)]
    wide, narrow = loss_of(kind, ours, theirs, mask_of(lengths, 6)), loss_of(kind, *short, mask_of(lengths, 3))
    torch.testing.assert_close(wide, narrow)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_is_zero_at_padding_and_nowhere_else(kind):
    mask = mask_of([4, 1, 3], 5)
    ours, theirs = features(kind, 3, 5).requires_grad_(), features(kind, 3, 5)
    loss_of(kind, ours, theirs, mask).backward()
    where = padding(kind, mask).expand_as(ours)
    assert not ours.grad[where].any() and bool((ours.grad[~where] != 0).all())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_padding_may_even_be_infinite(kind, value):
    """Some models produce infinite hidden states at positions that attend to nothing."""
    mask = mask_of([4, 1, 3], 5)
    ours, theirs = features(kind, 3, 5), features(kind, 3, 5)
    wanted = loss_of(kind, ours, theirs, mask)
    ours = ours.masked_fill(padding(kind, mask), value).requires_grad_()
    found = loss_of(kind, ours, theirs, mask)
    found.backward()
    assert torch.equal(found, wanted) and bool(torch.isfinite(ours.grad).all())


@pytest.mark.parametrize("kind", LOSSES)
def test_without_a_mask_every_position_counts(kind):
    ours, theirs = features(kind, 3, 5), features(kind, 3, 5)
    wanted = SLOW[kind](ours, theirs, [5, 5, 5])
    assert float(loss_of(kind, ours, theirs, None)) == pytest.approx(wanted, rel=1e-5)
    assert float(loss_of(kind, ours, theirs, torch.ones(3, 5, dtype=torch.bool))) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 7), (3, 4, 6), (3, 2, 5, 5)])
def test_outputs_that_are_no_sequences_of_these_positions_are_compared_whole(shape):
    """A pooled vector, for example, or image patches."""
    ours, theirs = torch.randn(shape), torch.randn(shape)
    found = loss_of("h", ours, theirs, mask_of([4, 1, 3], 5))
    assert float(found) == pytest.approx(float((ours - theirs).square().mean()), rel=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_pairs_add_up_and_each_has_its_own_layer(kind):
    lengths = [2, 5]
    students, teachers = ({name: features(kind, 2, 5) for name in ("a", "b")} for _ in range(2))
    loss = type(LOSSES[kind])((Pair("a", "b"), Pair("b", "a")))
    assert loss.taps() == (("a", "b"), ("b", "a")) and loss.needs_teacher
    mask = mask_of(lengths, 5)
    found = loss(Output(NO_LABELS, students, mask), Output(NO_LABELS, teachers, mask), NO_LABELS, 0.0)
    wanted = SLOW[kind](students["a"], teachers["b"], lengths) + SLOW[kind](students["b"], teachers["a"], lengths)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "message"),
    [
        ("s", (3, 2, 5, 5), (3, 4, 5, 5), r"AttentionScoreMSE s -> s: .*equally many heads"),
        ("s", (3, 1, 5, 5), (3, 4, 5, 5), "outputs of equal shape"),
        ("h", (3, 5, 4), (3, 5, 8), r"FeatureMSE h -> h: .*\(3, 5, 4\) and \(3, 5, 8\).*equal width"),
    ],
)
def test_layers_of_other_widths_are_refused_and_never_broadcast(kind, ours, theirs, message):
    with pytest.raises(DataError, match=message):
        loss_of(kind, torch.randn(ours), torch.randn(theirs), mask_of([4, 1, 3], 5))


@pytest.mark.parametrize("kind", LOSSES)
def test_they_are_computed_in_float32(kind):
    mask = mask_of([4, 1, 3], 5)
    ours, theirs = features(kind, 3, 5).bfloat16(), features(kind, 3, 5).bfloat16()
    found = loss_of(kind, ours, theirs, mask)
    assert found.dtype == torch.float32 and torch.equal(found, loss_of(kind, ours.float(), theirs.float(), mask))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("masked", [True, False])
def test_sequences_may_count_as_padded_to_a_length_as_in_published_code(kind, masked):
    """Padding to 64 with equal features changes a mean over all positions, but not a sum."""
    lengths = [5, 2, 4] if masked else [5, 5, 5]
    ours, theirs, mask = features(kind, 3, 5), features(kind, 3, 5), mask_of(lengths, 5)
    where = padding(kind, mask).expand_as(ours)
    wide = torch.zeros(3, 64, 3) if kind == "h" else torch.zeros(3, 2, 64, 64)
    difference = (ours - theirs).masked_fill(where, 0.0)
    wide[(slice(None), slice(5)) if kind == "h" else (slice(None), slice(None), slice(5), slice(5))] = difference
    loss = type(LOSSES[kind])((Pair(kind, kind),), padded_to=64)
    ours.requires_grad_()
    outputs = [Output(NO_LABELS, {kind: x}, mask if masked else None) for x in (ours, theirs)]
    found = loss(*outputs, NO_LABELS, 0.0)
    assert found.item() == pytest.approx(wide.square().mean().item(), rel=1e-5)
    found.backward()
    torch.testing.assert_close(ours.grad, 2 * difference.detach() / wide.numel())


def test_scores_of_half_as_many_positions_weigh_a_quarter_as_published():
    """Sentences of about 32 of 64 positions: the published term is 3.9 times smaller than the mean over real positions."""
    lengths = [26, 30, 32, 34, 38]
    ours, theirs = features("s", len(lengths), 38), features("s", len(lengths), 38)
    outputs = [Output(NO_LABELS, {"s": x}, mask_of(lengths, 38)) for x in (ours, theirs)]
    mean, published = (float(AttentionScoreMSE(SCORES.pairs, length)(*outputs, NO_LABELS, 0.0)) for length in (None, 64))
    assert mean / published == pytest.approx(len(lengths) * 64**2 / sum(n**2 for n in lengths), rel=1e-5)
    assert mean / published == pytest.approx(3.9, abs=0.05)


def test_lengths_to_count_as_padded_to():
    with pytest.raises(SpecError, match="FeatureMSE: wanted padded_to from 1 to 1,000,000,000, got 0"):
        FeatureMSE(HIDDEN.pairs, padded_to=0)
    for loss in (FeatureMSE(HIDDEN.pairs, 4), AttentionScoreMSE(SCORES.pairs, 4)):
        kind = loss.pairs[0].student
        output = Output(NO_LABELS, {kind: features(kind, 2, 5)}, mask_of([5, 2], 5))
        with pytest.raises(DataError, match="sequences of at most 4 positions, got 5"):
            loss(output, output, NO_LABELS, 0.0)


def test_masked_mean_by_hand():
    ours, theirs = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    assert float(masked_mse(ours, theirs, None)) == 7.5
    assert float(masked_mse(ours, theirs, torch.tensor([[True], [False]]))) == 2.5
    assert float(masked_mse(ours, theirs, torch.tensor([True, False]))) == 5.0
