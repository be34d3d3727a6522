"""The knapsack, against all subsets."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from bitstill.train.knapsack import knapsack

THINGS = st.lists(st.tuples(st.floats(-5, 10, allow_nan=False), st.integers(0, 30)), max_size=8)


def total(things, chosen, which):
    return sum(things[index][which] for index in chosen)


@settings(max_examples=200, deadline=None)
@given(THINGS, st.integers(0, 100))
def test_nothing_that_fits_is_worth_more(things, budget):
    chosen = knapsack([gain for gain, _ in things], [cost for _, cost in things], budget)
    assert list(chosen) == sorted(set(chosen)) and total(things, chosen, 1) <= budget
    subsets = chain.from_iterable(combinations(range(len(things)), size) for size in range(len(things) + 1))
    best = max(total(things, subset, 0) for subset in subsets if total(things, subset, 1) <= budget)
    assert abs(total(things, chosen, 0) - best) < 1e-9
    assert all(things[index][0] > 0 for index in chosen)


def test_what_fits_exactly_is_taken_whole_however_coarse_the_units():
    assert knapsack([1.0] * 70, [40_001] * 70, 70 * 40_001) == tuple(range(70))
    assert knapsack([1.0, 2.0, 1.0], [20_001, 20_001, 20_001], 40_003) == (0, 1)


@settings(max_examples=100, deadline=None)
@given(THINGS, st.integers(0, 10**9))
def test_with_coarse_units_it_still_fits(things, budget):
    costs = [cost * 10**7 for _, cost in things]
    chosen = knapsack([gain for gain, _ in things], costs, budget, steps=50)
    assert sum(costs[index] for index in chosen) <= budget
