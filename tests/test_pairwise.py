"""The helper that replaces cross products: it leaves out no pair."""

from __future__ import annotations

import itertools

import pytest

from tests.pairwise import pairwise


@pytest.mark.parametrize("sizes", [(3,), (2, 5), (2, 2, 2), (4, 3, 3, 2), (7, 7, 5, 2, 2)])
def test_every_pair_of_values_meets_in_few_rows(sizes):
    options = [[f"{name}{value}" for value in range(size)] for name, size in zip("abcde", sizes, strict=False)]
    rows = pairwise(*options)
    for one, other in itertools.combinations(range(len(sizes)), 2):
        assert {(row[one], row[other]) for row in rows} == set(itertools.product(options[one], options[other]))
    two_longest = sorted(sizes)[-2:]
    assert len(rows) <= 1.6 * two_longest[0] * two_longest[-1]
