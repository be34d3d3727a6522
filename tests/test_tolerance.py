"""The bound holds for sums in any order, and is tight enough to detect a wrong term."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tolerance import product_tolerance


@pytest.mark.parametrize("n", [10, 1_000, 40_000])
def test_sums_in_any_order_are_within_the_bound_and_wrong_terms_are_not(n):
    draw = np.random.default_rng(0)
    x, weight = (draw.standard_normal((1, n)).astype(np.float32) for _ in range(2))
    products = (x * weight)[0]
    exact = float(x[0].astype(np.float64) @ weight[0].astype(np.float64))
    tolerance = product_tolerance(x, weight)[0, 0]
    for order in (np.arange(n), np.argsort(products), np.argsort(-np.abs(products))):
        one_by_one = float(np.cumsum(products[order], dtype=np.float32)[-1])
        assert abs(one_by_one - exact) <= tolerance
    if n <= 1_000:
        assert abs(products).max() > tolerance, "a term that is left out is seen"
