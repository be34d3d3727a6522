"""Random numbers keyed by the place where they are used."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstill.data.shuffle import permutation, uniform
from bitstill.rng import derive


def splitmix64(state: int) -> int:
    """SplitMix64's finalizer in plain integers: the oracle."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.integers(1, 4))
def test_uniform_equals_plain_integer_arithmetic(key: int, samples: list[int], draws: int) -> None:
    found = uniform(key, torch.tensor(samples), draws)
    for row, sample in zip(found.tolist(), samples, strict=True):
        first = splitmix64(sample ^ key)
        wanted = [splitmix64((first + d * 0x9E3779B97F4A7C15) % 2**64) >> 40 for d in range(1, draws + 1)]
        assert row == [w / 2**24 for w in wanted]


def test_a_sample_draws_the_same_in_any_batch() -> None:
    alone = uniform(7, torch.tensor([41]), 3)
    among = uniform(7, torch.tensor([5, 41, 9]), 3)
    assert torch.equal(among[1:2], alone)


def test_uniform_is_uniform_and_uncorrelated() -> None:
    u = uniform(derive("a", 1), torch.arange(20_000), 2).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    histogram = np.histogram(u[:, 0], bins=20, range=(0, 1))[0]
    chi_square = float(((histogram - 1000) ** 2 / 1000).sum())
    assert chi_square < 43.8  # 99.9 % quantile with 19 degrees of freedom
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03


def test_derive_tells_names_apart_and_is_the_same_in_every_process() -> None:
    assert len({derive(0, "a"), derive(0, "b"), derive(1, "a"), derive("0", "a"), derive(0, "a", 0)}) == 5
    code = "from bitstill.rng import derive; print(derive(3, 'order', 'x', 2))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == derive(3, "order", "x", 2)


def test_permutation_is_one_and_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    order = permutation(100, 0, "order", 1)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(order, permutation(100, 0, "order", 1))
    assert not torch.equal(order, permutation(100, 0, "order", 2))
