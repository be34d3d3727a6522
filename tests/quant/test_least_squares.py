"""Least-squares scales and offsets, against every assignment of ascending codes to sorted weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bitstill.errors import SpecError
from bitstill.quant.base import ExactScale
from bitstill.quant.granularity import PerChannel, PerGroup
from bitstill.quant.rules import Ternary, Uniform, quantizer
from bitstill.quant.uniform import uniform_affine


def smallest_error(weights, bits, *, symmetric):
    """Least squared error over all steps and offsets: the best codes ascend with the weights, so all such codes are tried."""
    n = 2 ** (bits - 1) - 1
    levels = range(-n, n + 1) if symmetric else range(2**bits)
    codes = np.array(list(itertools.combinations_with_replacement(levels, len(weights))))
    w = np.sort(weights.astype(np.float64))
    if symmetric:
        slope = codes @ w / np.maximum((codes**2).sum(-1), 1)
        offset = np.zeros_like(slope)
    else:
        centred = codes - codes.mean(-1, keepdims=True)
        slope = centred @ w / np.maximum((centred**2).sum(-1), 1e-9)
        offset = w.mean() - slope * codes.mean(-1)
    return ((codes * slope[:, None] + offset[:, None] - w) ** 2).sum(-1).min()


def errors(quantizer, w):
    return (quantizer.quantize(w, None, {}).dequantize() - w).square().sum(-1).numpy()


@pytest.mark.parametrize(("bits", "symmetric", "weights", "bound"), [
    (2, False, 14, 1.05), (3, False, 10, 1.2), (2, True, 14, 1.05), (3, True, 11, 1.05),
])  # fmt: skip
def test_the_error_is_close_to_the_smallest_there_is_and_never_above_that_of_the_range(bits, symmetric, weights, bound):
    w = torch.randn(40, weights, generator=torch.Generator().manual_seed(0))
    w[::4] = w[::4] ** 3  # heavy tails
    fitted = Uniform(bits, symmetric=symmetric, granularity=PerChannel(), fit="least-squares")
    found = errors(fitted, w)
    best = np.array([smallest_error(row.numpy(), bits, symmetric=symmetric) for row in w])
    assert (found >= best * (1 - 1e-4) - 1e-6).all()
    assert (found <= errors(Uniform(bits, symmetric=symmetric, granularity=PerChannel()), w) + 1e-6).all()
    assert found.sum() <= bound * best.sum()
    assert np.median(found / best) < 1.05


def test_two_bits_lose_less_than_half_of_what_min_and_max_lose():
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    ranges, fitted = (errors(Uniform(2, granularity=PerChannel(), fit=fit), w).sum() for fit in ("range", "least-squares"))
    ternary = errors(Ternary(), w).sum()
    assert fitted < 0.5 * ranges
    assert fitted < ternary < ranges


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_and_pruned_weights_stay_zero_and_count_as_such(bits, dtype):
    w = torch.randn(16, 60, generator=torch.Generator().manual_seed(1))
    w[:, ::2] = 0.0
    w[3] = 0.0
    fitted = Uniform(bits, granularity=PerGroup(16), scale_dtype=dtype, fit="least-squares")
    assert not fitted.quantize(w, None, {}).dequantize()[w == 0].any()
    mask = w != 0
    pruned = fitted.quantize(w, mask, {}).dequantize()
    others = torch.where(mask, w, 100.0)  # pruned weights are left out
    assert torch.equal(pruned, fitted.quantize(others, mask, {}).dequantize())


def test_scales_in_float16_are_fitted_as_they_are_stored():
    w = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    (plane,) = uniform_affine(w, bits=3, granularity=PerChannel(), scale_dtype=torch.float16, fit="least-squares").planes
    assert plane.offset_RG is not None
    for stored in (plane.scale_RG, plane.offset_RG):
        assert torch.equal(stored, stored.half().float())


def test_settings_that_say_otherwise():
    assert quantizer(2, PerChannel(), untrained=True) == Uniform(2, granularity=PerChannel(), fit="least-squares")
    with pytest.raises(SpecError, match="fit='range' for the exact-scale gradient"):
        Uniform(4, gradient=ExactScale(), fit="least-squares")
