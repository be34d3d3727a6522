"""Assignment of samples to steps."""

from __future__ import annotations

import pytest
import torch

from bitstill.data.shuffle import permutation
from bitstill.data.task import Split
from bitstill.train.sampler import POOL, Sampler, steps_per_epoch


def split(samples: int, lengths: bool = True) -> Split:
    drawn = torch.randint(1, 100, (samples,), generator=torch.Generator().manual_seed(samples))
    return Split({"x": torch.zeros(samples, 1)}, torch.zeros(samples, dtype=torch.int64), drawn if lengths else None)


def epoch(sampler: Sampler, samples: int, batch: int, number: int = 0) -> list[torch.Tensor]:
    per = steps_per_epoch(samples, batch)
    return [sampler(step) for step in range(number * per, (number + 1) * per)]


@pytest.mark.parametrize(("samples", "batch", "wanted"), [(96, 32, 3), (100, 32, 3), (31, 32, 1), (1, 1, 1), (64, 32, 2)])
def test_an_epoch_is_its_full_batches(samples, batch, wanted):
    assert steps_per_epoch(samples, batch) == wanted


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(("samples", "batch"), [(96, 32), (100, 32), (5, 32), (7, 1), (POOL * 4 * 2 + 9, 4), (POOL * 4, 4)])
def test_every_epoch_has_every_sample_once_but_for_an_incomplete_batch(samples, batch, lengths):
    sampler = Sampler(split(samples, lengths), batch, 0, "stage")
    seen = []
    for number in range(3):
        batches = epoch(sampler, samples, batch, number)
        assert {len(indices) for indices in batches} == {min(batch, samples)}
        found = torch.cat(batches).tolist()
        assert len(set(found)) == len(found) == (samples // batch * batch or samples)
        assert all(0 <= index < samples for index in found)
        seen.append(tuple(found))
    assert len(set(seen)) == 3 or samples < 8, "and another order each time"


def test_what_is_dropped_differs_from_epoch_to_epoch():
    sampler = Sampler(split(100), 32, 0)
    dropped = [frozenset(range(100)) - set(torch.cat(epoch(sampler, 100, 32, number)).tolist()) for number in range(4)]
    assert [len(left) for left in dropped] == [4] * 4 and len(set(dropped)) == 4


@pytest.mark.parametrize("lengths", [True, False])
def test_the_same_names_give_the_same_batches_and_others_give_others(lengths):
    data = split(200, lengths)

    def all_of(*names):
        return torch.cat(epoch(Sampler(data, 10, *names), 200, 10)).tolist()

    assert all_of(0, "order", "a") == all_of(0, "order", "a")
    assert len({tuple(all_of(*names)) for names in ((0, "order", "a"), (1, "order", "a"), (0, "order", "b"))}) == 3


@pytest.mark.parametrize("lengths", [True, False])
def test_a_run_that_resumes_at_any_step_sees_the_batch_it_would_have_seen(lengths):
    data = split(100, lengths)
    whole = Sampler(data, 8, 3, "s")
    wanted = [whole(step) for step in range(40)]
    for start in range(40):
        assert torch.equal(Sampler(data, 8, 3, "s")(start), wanted[start])
    assert all(torch.equal(whole(step), wanted[step]) for step in (39, 0, 12, 11, 30)), "nor does the order of asking matter"


def test_without_lengths_batches_are_cut_from_a_shuffled_order():
    sampler = Sampler(split(100, lengths=False), 32, 7, "order", "name")
    for step in range(9):
        number, place = divmod(step, 3)
        assert torch.equal(sampler(step), permutation(100, 7, "order", "name", number)[place * 32 : (place + 1) * 32])


def spread(data: Split, batches: list[torch.Tensor]) -> float:
    """Mean difference between a batch's longest sample and its mean length: wasted positions."""
    assert data.lengths is not None
    return sum(float(data.lengths[b].max() - data.lengths[b].float().mean()) for b in batches) / len(batches)


def test_batches_are_made_of_samples_of_similar_length():
    data = split(6000)
    ours, random = spread(data, epoch(Sampler(data, 32, 0), 6000, 32)), spread(data, list(torch.randperm(6000).split(32)))
    assert random > 40 and ours < random / 10


def test_short_and_long_batches_come_mixed():
    """Sorted by length, an epoch would end with long samples only."""
    data = split(6400)
    longest = torch.tensor([float(data.lengths[batch].max()) for batch in epoch(Sampler(data, 32, 0), 6400, 32)])
    half = len(longest) // 2
    assert abs(float(longest[:half].mean() - longest[half:].mean())) < 15
    assert abs(float(torch.corrcoef(torch.stack([longest, torch.arange(len(longest)).float()]))[0, 1])) < 0.3


def test_companions_change_from_epoch_to_epoch():
    data = split(3200)
    sampler = Sampler(data, 32, 0)
    first, second = (epoch(sampler, 3200, 32, number) for number in (0, 1))
    together = {frozenset(batch.tolist()) for batch in first}
    assert not together & {frozenset(batch.tolist()) for batch in second}


def test_equal_lengths_are_as_good_as_none():
    data = Split({"x": torch.zeros(64, 1)}, torch.zeros(64, dtype=torch.int64), torch.full((64,), 5))
    found = torch.cat(epoch(Sampler(data, 8, 0), 64, 8))
    assert sorted(found.tolist()) == list(range(64)) and found.tolist() != list(range(64))


def test_a_batch_is_cut_to_its_longest_sample():
    ids = torch.arange(40).reshape(4, 10)
    data = Split({"ids": ids, "scalar": torch.arange(4)}, torch.zeros(4, dtype=torch.int64), torch.tensor([3, 10, 2, 5]))
    batch = data.take(torch.tensor([2, 0]))
    assert torch.equal(batch["ids"], ids[[2, 0], :3]) and torch.equal(batch["scalar"], torch.tensor([2, 0]))
    assert data.take(torch.tensor([3]))["ids"].shape == (1, 5)


def test_evaluation_reads_samples_of_similar_length_together_and_all_of_them():
    data = split(103)
    batches = list(data.batches(10))
    assert sorted(torch.cat(batches).tolist()) == list(range(103)) and len(batches) == 11
    assert data.lengths[torch.cat(batches)].diff().min() >= 0
    plain = list(split(103, lengths=False).batches(10))
    assert torch.cat(plain).tolist() == list(range(103))


def test_data_with_other_lengths_are_other_data():
    """Lengths decide which samples share a batch: other lengths make another run."""
    one = split(10)
    other = Split(one.inputs, one.labels, one.lengths.flip(0))
    assert one.digest() != other.digest() != Split(one.inputs, one.labels).digest()
