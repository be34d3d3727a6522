"""GLUE's metrics against scikit-learn and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from bitstill.data.metrics import accuracy, accuracy_and_f1, f1, matthews, pearson, pearson_and_spearman, spearman

two_classes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
coarse = st.integers(-3, 3).map(float)  # few values, so that most lists have ties
fine = st.floats(-100, 100, width=32)
values = st.one_of(st.lists(st.tuples(coarse, coarse), min_size=3, max_size=40), st.lists(st.tuples(fine, fine), min_size=3))


def logits_of(classes: np.ndarray) -> torch.Tensor:
    """Logits whose maximum is at each sample's class, by varying margins."""
    noise = torch.linspace(0, 0.4, len(classes))
    return torch.nn.functional.one_hot(torch.from_numpy(classes), 2) + noise[:, None] * torch.tensor([1.0, 0.5])


def columns(rows) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.array(rows).T
    return one, other


@given(two_classes)
def test_classification_is_what_scikit_learn_says(rows):
    predicted, wanted = columns(rows)
    logits, labels = logits_of(predicted), torch.from_numpy(wanted)
    score = 100 * sk.f1_score(wanted, predicted, zero_division=0)
    exact = 100 * sk.accuracy_score(wanted, predicted)
    assert accuracy(logits, labels) == pytest.approx(exact)
    assert f1(logits, labels) == pytest.approx(score)
    assert accuracy_and_f1(logits, labels) == pytest.approx((exact + score) / 2)
    assume(len(set(wanted)) == 2 or len(set(predicted)) == 2)  # scikit-learn warns about a single label
    assert matthews(logits, labels) == pytest.approx(100 * sk.matthews_corrcoef(wanted, predicted))


@given(values)
def test_correlations_are_what_scipy_says_ties_included(rows):
    one, other = columns(rows)
    assume(np.ptp(one) > 1e-3 and np.ptp(other) > 1e-3)
    logits, labels = torch.from_numpy(one).float()[:, None], torch.from_numpy(other).float()
    linear, ranked = 100 * stats.pearsonr(one, other).statistic, 100 * stats.spearmanr(one, other).statistic
    assert pearson(logits, labels) == pytest.approx(linear, abs=1e-6)
    assert spearman(logits, labels) == pytest.approx(ranked, abs=1e-6)
    assert pearson_and_spearman(logits, labels) == pytest.approx((linear + ranked) / 2, abs=1e-6)


@given(values)
def test_one_output_may_have_a_dimension_of_its_own(rows):
    one, other = (torch.from_numpy(column).float() for column in columns(rows))
    assert pearson_and_spearman(one, other) == pearson_and_spearman(one[:, None], other)


@pytest.mark.parametrize(
    ("predicted", "wanted", "score"),
    [([0, 0, 0], [0, 1, 0], 0), ([1, 1, 1], [0, 1, 0], 0), ([0, 1, 0], [1, 1, 1], 0), ([0, 1, 1], [0, 1, 1], 100),
     ([1, 0, 0], [0, 1, 1], -100), ([1], [1], 0)],
)  # fmt: skip
def test_matthews_at_its_limits(predicted, wanted, score):
    assert matthews(logits_of(np.array(predicted)), torch.tensor(wanted)) == score


def test_f1_where_class_one_is_absent_is_zero():
    assert f1(logits_of(np.array([0, 0])), torch.tensor([0, 0])) == 0
    assert accuracy_and_f1(logits_of(np.array([0, 0])), torch.tensor([0, 0])) == 50


@pytest.mark.parametrize("metric", [pearson, spearman, pearson_and_spearman])
def test_a_constant_side_correlates_with_nothing(metric):
    for value, count in itertools.product([0.0, 0.1, 1 / 3, -2.7, 1e-6, 1e6], [1, 2, 3, 7, 1500]):
        constant, other = torch.full((count,), value), torch.arange(count).float() ** 2
        assert metric(constant, other) == 0 == metric(other, constant) == metric(constant, constant), (value, count)


@pytest.mark.parametrize("metric", [pearson, spearman, pearson_and_spearman])
def test_perfect_correlations(metric):
    x = torch.tensor([0.5, 1.0, 1.0, 4.5, 5.0])
    assert metric(x, x) == pytest.approx(100) and metric(-x, x) == pytest.approx(-100)
    assert metric(2 * x + 7, x) == pytest.approx(100)


def test_spearman_sees_order_and_nothing_else():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert spearman(x.exp() ** 3, x) == pytest.approx(100) and pearson(x.exp() ** 3, x) < 90


def test_many_samples_do_not_overflow():
    labels = torch.arange(200_000) % 2
    assert matthews(torch.nn.functional.one_hot(labels, 2).float(), labels) == pytest.approx(100)
