"""Exact counts of pruned weights, and the entropy of codes in bits."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstill.artifact.entropy import huffman_bits, shannon_bits
from bitstill.errors import SpecError
from bitstill.quant.masks import even_mask, global_masks, magnitude_mask, sparsity_of
from bitstill.quant.points import share_points


@given(st.integers(0, 2**32), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), st.floats(0, 1), st.booleans())
def test_mask_prunes_exactly_the_smallest(seed, shape, sparsity, ties):
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if ties:
        w = np.round(w)
    mask = magnitude_mask(torch.from_numpy(w), sparsity).numpy().ravel()
    pruned = round(sparsity * w.size)
    assert int((~mask).sum()) == pruned
    # Slow version: sort by magnitude; of two equals the later one goes first.
    victims = sorted(range(w.size), key=lambda i: (abs(w.ravel()[i]), -i))[:pruned]
    assert sorted(victims) == np.flatnonzero(~mask).tolist()
    assert sparsity_of(torch.from_numpy(mask)) == pytest.approx(pruned / w.size, abs=1e-6)


def test_among_equals_the_first_in_memory_is_kept():
    assert magnitude_mask(torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.5).tolist() == [True, True, False, False]


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, math.nan])
def test_a_sparsity_that_is_no_fraction_is_refused(sparsity):
    with pytest.raises(SpecError, match="sparsity from 0 to 1"):
        magnitude_mask(torch.randn(3), sparsity)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0, 1), st.booleans())
def test_global_masks_are_one_ranking_over_all(seed, sizes, sparsity, ties):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((size, 2)).astype(np.float32) for size in sizes]
    if ties:
        weights = [np.round(w) for w in weights]
    masks = global_masks([torch.from_numpy(w) for w in weights], sparsity)
    whole = magnitude_mask(torch.from_numpy(np.concatenate([w.ravel() for w in weights])), sparsity)
    assert [mask.shape for mask in masks] == [w.shape for w in weights]
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), whole)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(2, 6), st.data())
def test_even_masks_keep_the_largest_of_every_group(seed, rows, groups, within, data):
    pruned = data.draw(st.integers(0, within))
    w = np.round(np.random.default_rng(seed).standard_normal((rows, groups * within)) * 3).astype(np.float32)
    mask = even_mask(torch.from_numpy(w), pruned / within, within).numpy()
    for row in range(rows):
        for start in range(0, groups * within, within):
            part = w[row, start : start + within]
            kept = sorted(range(within), key=lambda i: (-abs(part[i]), i))[: within - pruned]
            assert np.flatnonzero(mask[row, start : start + within]).tolist() == sorted(kept)


def test_rows_that_groups_do_not_divide_are_refused():
    with pytest.raises(SpecError, match="rows that 4 divides, got rows of 9 weights"):
        even_mask(torch.randn(2, 1, 3, 3), 0.5, 4)


def test_huffman_by_hand():
    """Frequencies 5, 2, 1, 1: lengths 1, 2, 3, 3, hence (5 + 4 + 3 + 3) / 9 bits."""
    assert huffman_bits([5, 2, 1, 1]) == pytest.approx(15 / 9)
    assert huffman_bits([1] * 16) == 4.0
    assert huffman_bits([9]) == huffman_bits([9, 0, 0]) == 1.0
    assert huffman_bits([]) == huffman_bits([0, 0]) == 0.0


def _huffman_by_tree(counts: list[int]) -> float:
    """The textbook way: merge the two rarest symbol sets; every symbol in them gets one bit longer."""
    nodes = [(n, [symbol]) for symbol, n in enumerate(counts) if n]
    lengths: Counter[int] = Counter()
    while len(nodes) > 1:
        nodes.sort(key=lambda node: node[0])
        (n, one), (m, other) = nodes[:2]
        lengths.update(one + other)
        nodes = [*nodes[2:], (n + m, one + other)]
    return sum(counts[s] * length for s, length in lengths.items()) / sum(counts)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(lambda counts: sum(n > 0 for n in counts) > 1))
def test_entropy_bounds_huffman(counts):
    assert huffman_bits(counts) == pytest.approx(_huffman_by_tree(counts))
    assert shannon_bits(counts) <= huffman_bits(counts) + 1e-9
    assert huffman_bits(counts) < shannon_bits(counts) + 1


def test_entropy_of_known_distributions():
    assert shannon_bits([1, 1, 1, 1]) == 2.0
    assert shannon_bits([3, 1]) == pytest.approx(0.811278, abs=1e-6)
    assert math.copysign(1, shannon_bits([7])) == 1.0
    assert shannon_bits([7]) == shannon_bits([]) == 0.0


def test_points_are_shared_out_as_published():
    assert share_points((16, 16, 16), (1, 2, 5)) == [11, 14, 23]


@given(st.lists(st.tuples(st.integers(4, 40), st.floats(0.01, 10)), min_size=1, max_size=9))
def test_sharing_keeps_the_sum_the_halves_and_the_order(pairs):
    counts, norms = [n for n, _ in pairs], [g for _, g in pairs]
    new = share_points(counts, norms)
    assert sum(new) == sum(counts) or max(new) == 256
    assert all(2 <= n <= 256 for n in new)
    if len(set(counts)) == 1:
        order = sorted(range(len(norms)), key=norms.__getitem__)
        assert all(new[a] <= new[b] + 1 for a, b in itertools.pairwise(order)), "a larger gradient earns as many"


def test_sharing_stays_within_the_limits():
    assert share_points((2, 2), (1, 1)) == [2, 2]
    assert max(share_points((256, 256), (0, 1))) == 256
    assert min(share_points((2, 2, 200), (0, 0, 1))) == 2
