"""Ternary weight splitting, against its defining identity and the published formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from bitstill.quant.binary import binary
from bitstill.quant.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor
from bitstill.quant.split import split_ternary
from bitstill.quant.ternary import ternary

GRANULARITIES: tuple[Granularity, ...] = (PerTensor(), PerChannel(), PerGroup(5), Bucket(7))


def check(weight: Tensor, granularity: Granularity, mask: Tensor | None = None, iterations: int = 0) -> tuple[Tensor, Tensor]:
    """Check that latent and quantized halves sum to the original, to float32 rounding, with equal scales."""
    whole = ternary(weight, mask, granularity=granularity, iterations=iterations)
    first, second = split_ternary(weight, whole)
    largest = float(weight.abs().max())
    assert torch.allclose(first + second, weight, rtol=0, atol=4e-7 * largest)
    halves = [binary(half, mask, granularity=granularity) for half in (first, second)]
    total = halves[0].dequantize() + halves[1].dequantize()
    assert torch.allclose(total, whole.dequantize(), rtol=0, atol=1e-6 * largest)
    for half in halves:
        assert torch.allclose(half.planes[0].scale_RG, whole.planes[0].scale_RG / 2, rtol=2e-6, atol=1e-6 * largest)
    return first, second


def published(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bai et al. 2021, one group, zeros split by sign, as the released code computes it."""
    w = weight.double()
    magnitude = w.abs()
    inside = magnitude > 0.7 * magnitude.mean()
    positive, negative = ~inside & (w > 0), ~inside & (w <= 0)
    alpha = magnitude[inside].mean()
    a = (magnitude[inside].sum() + magnitude[negative].sum() - magnitude[positive].sum()) / (2 * magnitude[inside].sum())
    b = (w.numel() * alpha - magnitude.sum()) / (2 * (positive.sum() + negative.sum()))
    first = torch.where(inside, a * w, torch.where(positive, w + b, b))
    second = torch.where(inside, (1 - a) * w, torch.where(positive, -b, w - b))
    return first, second


@pytest.mark.parametrize("iterations", [0, 10])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_the_sum_is_the_ternary_weight(granularity, pruned, iterations):
    torch.manual_seed(0)
    for shape in ((6, 11), (4, 3, 3, 3), (1, 1), (5, 1)):
        weight = torch.randn(shape)
        check(weight, granularity, torch.rand(shape) > 0.4 if pruned else None, iterations)


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-4, 4, width=16)),
    st.sampled_from(GRANULARITIES),
)
def test_whatever_the_weights_are(values, granularity):
    check(torch.from_numpy(values), granularity)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("one that outweighs all others", torch.tensor([[0.65] * 60 + [25.0]])),
        ("the same below zero", -torch.tensor([[0.65] * 60 + [25.0]])),
        ("all of one magnitude", torch.tensor([[-0.3, 0.3, 0.3, -0.3]])),
        ("nothing but zeros", torch.zeros(2, 4)),
        ("a row of zeros", torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.1]])),
        ("zeros of both signs", torch.tensor([[0.0, -0.0, 1.0, -1.0]])),
        ("a single weight", torch.tensor([[-2.0]])),
        ("tiny and huge", torch.tensor([[1e-30, 1.0, -1e-30], [1e20, -1e20, 1e19]])),
    ],
)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel()], ids=repr)
def test_edges(name, weight, granularity):
    check(weight, granularity)


def test_the_factor_stays_near_a_half_where_the_published_one_leaves_the_unit_interval():
    weight = torch.tensor([0.65] * 60 + [25.0])
    first, second = published(weight)
    assert float(first[-1] / weight[-1]) == pytest.approx(-0.28)
    total = sum(binary(half.float(), granularity=PerTensor()).dequantize() for half in (first, second))
    assert not torch.allclose(total, ternary(weight, granularity=PerTensor()).dequantize()), "the published split breaks there"
    first, _ = check(weight[None], PerTensor())
    assert 0.4 < float(first[0, -1] / weight[-1]) < 0.6


def test_where_zeros_balance_by_sign_it_is_the_published_split_up_to_which_half_gets_which():
    weight = torch.tensor([2.0, -3.0, 2.5, -1.5, 0.3, -0.3, 0.1, -0.1])
    ours, theirs = split_ternary(weight[None], ternary(weight[None], granularity=PerTensor())), published(weight)
    assert torch.allclose(ours[0][0, :4], theirs[0][:4].float()) and torch.allclose(ours[1][0, :4], theirs[1][:4].float())
    sums = [sum(half[4:].abs().sum() for half in (a.flatten().double(), b.flatten().double())) for a, b in (ours, theirs)]
    assert float(sums[0]) == pytest.approx(float(sums[1]))


def test_fitted_ternary_is_nearer_to_the_weights():
    torch.manual_seed(0)
    weight = torch.randn(8, 40) ** 3  # heavy tails, for which the threshold of normal weights is a poor one
    errors = [
        float((ternary(weight, granularity=PerChannel(), iterations=count).dequantize() - weight).square().sum())
        for count in (0, 1, 10)
    ]
    assert errors[0] > errors[1] >= errors[2]


def test_fitted_ternary_is_the_published_loop():
    """Hou and Kwok 2018 with a curvature of 1: alternate rounding and the mean over the weights rounded to one."""
    torch.manual_seed(1)
    for weight in torch.randn(5, 60):
        levels = torch.where(weight.abs() > 0.7 * weight.abs().mean(), weight.sign(), 0.0)
        for _ in range(10):
            alpha = (levels * weight).sum() / levels.abs().sum()
            levels = (weight / alpha).clamp(-1, 1).round()
        alpha = (levels * weight).sum() / levels.abs().sum()
        found = ternary(weight[None], granularity=PerTensor(), iterations=10).dequantize()[0]
        assert torch.allclose(found, levels * alpha, atol=1e-6)


def test_loss_aware_ternary_is_the_published_loop():
    """Hou and Kwok 2018: alternate rounding and the curvature-weighted mean over the weights rounded to one."""
    torch.manual_seed(2)
    for weight, curvature in zip(torch.randn(5, 60), torch.rand(5, 60) ** 4, strict=True):
        levels = torch.where(weight.abs() > 0.7 * weight.abs().mean(), weight.sign(), 0.0)
        for _ in range(6):
            alpha = (levels * curvature * weight).sum() / (levels * curvature).abs().sum()
            levels = (weight / alpha).clamp(-1, 1).round()
        alpha = (levels * curvature * weight).sum() / (levels * curvature).abs().sum()
        found = ternary(weight[None], granularity=PerTensor(), iterations=6, curvature=curvature[None]).dequantize()[0]
        assert torch.allclose(found, levels * alpha, atol=1e-6)


def test_loss_aware_ternary_misses_less_where_the_loss_feels_it():
    torch.manual_seed(3)
    weight, curvature = torch.randn(8, 200), torch.rand(8, 200) ** 8

    def missed(curvature_: Tensor | None) -> float:
        found = ternary(weight, granularity=PerChannel(), iterations=10, curvature=curvature_).dequantize()
        return float((curvature * (found - weight).square()).sum())

    assert missed(curvature) < missed(None)


@given(st.integers(0, 2**32), st.sampled_from([0.2, 1.0, 8.0]), st.booleans())
def test_what_a_loss_aware_scale_leaves_too_little_room_for_is_made_smaller(seed, power, pruned):
    torch.manual_seed(seed % 2**31)
    weight = torch.randn(6, 40)
    curvature = (1e-8 + torch.rand(6, 40) * weight.abs().rsqrt()) ** power  # small weights matter more, so scales are small
    mask = torch.rand(6, 40) > 0.4 if pruned else None
    options = {"granularity": PerChannel(), "iterations": 10, "curvature": curvature}
    whole = ternary(weight, mask, **options)
    first, second = split_ternary(weight, whole, loss_aware=True)
    halves = [binary(half, mask, granularity=PerChannel()).dequantize() for half in (first, second)]
    assert torch.allclose(halves[0] + halves[1], whole.dequantize(), atol=1e-5)
    kept = torch.ones_like(weight) if mask is None else mask.float()
    room = whole.planes[0].scale_RG[:, 0] * kept.sum(1) / (weight.abs() * kept).sum(1)
    full = (whole.dequantize() != 0).float().sum(1) == kept.sum(1)
    ratio = torch.where(full, room, torch.where(room < 1, 0.99 * room, 1.0))
    assert torch.allclose(first + second, ratio[:, None] * weight, atol=1e-6)
