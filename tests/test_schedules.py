"""Schedules at their ends, in between, and against their formulas."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstill.errors import SpecError
from bitstill.schedules import Constant, Cosine, Cubic, Linear, WarmupLinear, at

numbers = st.floats(-10, 10)
fractions = st.floats(0, 1)
windows = st.tuples(st.integers(0, 9), st.integers(1, 10)).filter(lambda w: w[0] < w[1]).map(lambda w: (w[0] / 10, w[1] / 10))


@given(numbers, fractions)
def test_constant_and_numbers(value, progress):
    assert at(Constant(value), progress) == at(value, progress) == value
    assert at(3, progress) == 3.0
    assert isinstance(at(3, progress), float)


@given(numbers, numbers, windows, fractions)
def test_linear_and_cubic_are_their_formulas(start, end, window, progress):
    begin, until = window
    t = min(1, max(0, (progress - begin) / (until - begin)))
    assert Linear(start, end, begin, until)(progress) == pytest.approx(start * (1 - t) + end * t, abs=1e-9)
    assert Cubic(start, end, begin, until)(progress) == pytest.approx(end + (start - end) * (1 - t) ** 3, abs=1e-9)


def test_cubic_is_the_published_sparsity_schedule():
    """Zhu and Gupta (2017), eq. 1: from 0 to 0.9; after half of the steps it has covered 7/8 of the range."""
    assert Cubic(0.0, 0.9)(0.5) == pytest.approx(0.9 * 7 / 8)


@pytest.mark.parametrize("kind", [Linear, Cubic])
@given(numbers, numbers, windows)
def test_ends_are_exact_and_nothing_happens_outside_the_window(kind, start, end, window):
    begin, until = window
    schedule = kind(start, end, begin, until)
    assert schedule(0.0) == schedule(begin) == pytest.approx(start)
    assert schedule(1.0) == schedule(until) == pytest.approx(end)


@given(st.floats(0.1, 10), st.floats(0, 0.09), st.floats(0.01, 0.9), fractions)
def test_warm_up_then_down(peak, end, warmup, progress):
    cosine, linear = Cosine(peak, end, warmup), WarmupLinear(peak, warmup, end)
    if progress < warmup:
        assert cosine(progress) == linear(progress) == pytest.approx(peak * progress / warmup)
    else:
        t = (progress - warmup) / (1 - warmup)
        assert cosine(progress) == pytest.approx(end + (peak - end) * (1 + math.cos(math.pi * t)) / 2)
        assert linear(progress) == pytest.approx(peak * (1 - t) + end * t)
    assert cosine(1.0) == pytest.approx(end)
    assert linear(1.0) == pytest.approx(end)


def test_without_warm_up_the_peak_comes_first():
    assert Cosine(2.0)(0.0) == 2.0
    assert WarmupLinear(2.0, warmup=0.0)(0.0) == 2.0


@pytest.mark.parametrize("make", [
    lambda: Linear(0, 1, 0.5, 0.5), lambda: Cubic(0, 1, 0.9, 0.1), lambda: Linear(0, 1, -0.1), lambda: Cubic(0, 1, until=1.5),
    lambda: Cosine(1, warmup=1.0), lambda: WarmupLinear(1, warmup=-0.5),
])  # fmt: skip
def test_impossible_windows_are_refused(make):
    with pytest.raises(SpecError, match="0 <= begin < until <= 1"):
        make()
