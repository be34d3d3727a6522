"""Every quantizer against its slow version, on ordinary and on extreme weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstill.errors import SpecError
from bitstill.quant.binary import binary
from bitstill.quant.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor
from bitstill.quant.lsq import LearnedStep, uniform_step
from bitstill.quant.points import initial_points, nearest_points
from bitstill.quant.ternary import ternary
from bitstill.quant.uniform import uniform_affine, uniform_symmetric
from tests.quant import oracles

DTYPES = {"float32": torch.float32, "float16": torch.float16}
SPECIAL = {
    "normal": 1.0, "tiny": 1e-30, "denormal": 1e-42, "huge": 1e30, "float16 subnormal": 1e-6, "beyond float16": 1e6,
}  # fmt: skip

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)
sizes = st.sampled_from([1, 2, 3, 5, 7, 16, 1000])
granularities = st.one_of(st.just(PerTensor()), st.just(PerChannel()), sizes.map(PerGroup), sizes.map(Bucket))


@st.composite
def weights(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    """A float32 weight of any shape and magnitude, some rows constant or zero, and a mask or None."""
    shape = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    w = (rng.standard_normal(shape) * SPECIAL[draw(st.sampled_from(sorted(SPECIAL)))]).astype(np.float32)
    if draw(st.booleans()):
        w[rng.integers(shape[0])] = draw(st.sampled_from([0.0, -0.0, 0.3, -2.5, 1e30, 1e-42]))
    mask = None
    if draw(st.booleans()):
        mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    return w, mask


def _torch(weight: np.ndarray, mask: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.from_numpy(weight), None if mask is None else torch.from_numpy(mask)


def _keep(weight: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return np.ones(weight.shape, bool) if mask is None else mask


def _same(found: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(found.numpy(), wanted)
    assert found.dtype == torch.float32
    assert np.isfinite(wanted).all()


@given(weights(), granularities, st.integers(1, 8), st.sampled_from(sorted(DTYPES)), st.booleans())
def test_affine_equals_the_loop_and_zero_stays_zero(pair, granularity, bits, dtype, sparse):
    w, mask = pair
    if sparse:
        w[np.abs(w) < np.median(np.abs(w))] = 0.0
    found = uniform_affine(*_torch(w, mask), bits=bits, granularity=granularity, scale_dtype=DTYPES[dtype])
    _same(found.dequantize(), oracles.affine(w, _keep(w, mask), granularity, bits, dtype))
    assert not found.dequantize().numpy()[w == 0].any()


@given(weights(), granularities, st.integers(2, 8), st.sampled_from(sorted(DTYPES)))
def test_symmetric_equals_the_loop(pair, granularity, bits, dtype):
    w, mask = pair
    found = uniform_symmetric(*_torch(w, mask), bits=bits, granularity=granularity, scale_dtype=DTYPES[dtype])
    _same(found.dequantize(), oracles.symmetric(w, _keep(w, mask), granularity, bits, dtype))


@given(weights(), granularities, st.lists(st.floats(0, 1, width=32), min_size=2, max_size=19), st.sampled_from(sorted(DTYPES)))
def test_points_equal_the_loop(pair, granularity, points, dtype):
    w, mask = pair
    points_L = torch.tensor(points)
    found = nearest_points(*_torch(w, mask), points_L=points_L, granularity=granularity, scale_dtype=DTYPES[dtype])
    _same(found.dequantize(), oracles.nearest_points(w, _keep(w, mask), granularity, points_L.numpy(), dtype))


@given(weights(), granularities)
def test_binary_equals_the_loop(pair, granularity):
    w, mask = pair
    found = binary(*_torch(w, mask), granularity=granularity).dequantize()
    wanted = oracles.binary(w, _keep(w, mask), granularity)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=3e-45)


@given(weights(), granularities)
def test_ternary_equals_the_loop(pair, granularity):
    w, mask = pair
    found = ternary(*_torch(w, mask), granularity=granularity).dequantize()
    wanted = oracles.ternary(w, _keep(w, mask), granularity)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=3e-45)


QUANTIZERS = {
    "affine": lambda w, m, **k: uniform_affine(w, m, bits=3, **k),
    "symmetric": lambda w, m, **k: uniform_symmetric(w, m, bits=4, **k),
    "binary": binary,
    "ternary": ternary,
    "points": lambda w, m, **k: nearest_points(w, m, points_L=torch.tensor([0.1, 0.4, 0.8]), **k),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@given(weights(), granularities, st.sampled_from(sorted(DTYPES)))
def test_result_is_finite_pruned_weights_are_plus_zero_and_codes_name_levels(name, pair, granularity, dtype):
    w, m = _torch(*pair)
    quantized = QUANTIZERS[name](w, m, granularity=granularity, scale_dtype=DTYPES[dtype])
    effective = quantized.dequantize()
    assert effective.shape == w.shape
    assert torch.isfinite(effective).all()
    if m is not None:
        assert effective[~m].numpy().tobytes() == bytes(4 * int((~m).sum()))
    for plane, codes in zip(quantized.planes, quantized.codes(), strict=True):
        assert torch.equal(plane.levels[plane.codes_RGK().long()], plane.values_RGK)
        assert int(codes.max()) < plane.levels.numel()
        assert torch.equal(plane.levels, plane.levels.sort().values)
        assert plane.scale_RG.numpy().tobytes() == plane.scale_RG.to(DTYPES[dtype]).float().numpy().tobytes()


@pytest.mark.parametrize("name", ["affine", "symmetric", "binary", "ternary"])
@given(weights(), granularities)
def test_padding_never_reaches_a_statistic(name, pair, granularity):
    """Each group quantized alone, as its own tensor, gives the same weights as within the whole."""
    w, m = _torch(*pair)
    whole = QUANTIZERS[name](w, m, granularity=granularity).dequantize().flatten()
    for group in oracles.groups_of(tuple(w.shape), granularity):
        part = QUANTIZERS[name](w.flatten()[group], None if m is None else m.flatten()[group], granularity=PerTensor())
        torch.testing.assert_close(part.dequantize(), whole[group], rtol=2e-6, atol=1e-44)


@given(weights(), granularities, st.integers(1, 8))
def test_affine_is_within_half_a_step_and_never_leaves_the_range(pair, granularity, bits):
    w, m = _torch(*pair)
    effective = uniform_affine(w, m, bits=bits, granularity=granularity).dequantize().double().flatten()
    flat = w.double().flatten()
    for group in oracles.groups_of(tuple(w.shape), granularity):
        index = torch.tensor([i for i in group if m is None or m.flatten()[i]], dtype=torch.long)
        if not len(index):
            continue
        low, high = flat[index].min(), flat[index].max()
        slack, half = 1e-6 * max(abs(low), abs(high)) + 1e-10, 0.5 * (high - low) / (2**bits - 1)
        assert ((effective[index] - flat[index]).abs() <= half + slack).all()
        slack += half * bool((flat[index] == 0).any())  # levels are shifted so that one is at zero
        assert (effective[index] >= low - slack).all()
        assert (effective[index] <= high + slack).all()


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(3), Bucket(4)])
@pytest.mark.parametrize("value", [0.0, 0.125, -3.0, 1e30, 1e-30])
def test_a_constant_group_is_reproduced_exactly(granularity: Granularity, value: float):
    w = torch.full((3, 5), value)
    for bits in range(1, 9):
        assert torch.equal(uniform_affine(w, bits=bits, granularity=granularity).dequantize(), w)
    torch.testing.assert_close(binary(w, granularity=granularity).dequantize(), w, rtol=1e-6, atol=0)
    torch.testing.assert_close(ternary(w, granularity=granularity).dequantize(), w, rtol=1e-6, atol=0)


def test_zero_has_the_sign_of_its_bit_in_binary_and_is_zero_in_ternary():
    w = torch.tensor([[0.0, -0.0, 1.0, -2.0]])
    assert binary(w, granularity=PerTensor()).dequantize().tolist() == [[0.75, -0.75, 0.75, -0.75]]
    assert ternary(w, granularity=PerTensor()).dequantize().tolist() == [[0.0, 0.0, 1.5, -1.5]]


def test_binary_scale_is_the_least_squares_one():
    """No other scale, tried by brute force, is closer to the weight (XNOR-Net, eq. 6)."""
    w = torch.randn(1, 50)
    scale = float(binary(w, granularity=PerTensor()).planes[0].scale_RG)
    errors = {s: float(((w.sign() * s - w) ** 2).sum()) for s in [scale, *torch.linspace(0, 3, 301).tolist()]}
    assert min(errors, key=errors.__getitem__) == scale


def test_zeros_are_levels_of_every_symmetric_quantizer():
    for bits in range(2, 9):
        quantized = uniform_symmetric(torch.randn(4, 9), bits=bits, granularity=PerChannel())
        levels = quantized.planes[0].levels.tolist()
        assert levels == list(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)))


@pytest.mark.parametrize("function", [uniform_affine, uniform_symmetric])
def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour(function):
    """E[Q(w)] = w: over 4000 draws the mean of each weight is within five standard errors."""
    w = torch.rand(1, 40) * 2 - 1
    draws = 4000
    samples = torch.stack(
        [function(w, bits=3, granularity=PerTensor(), stochastic=True).dequantize() for _ in range(draws)]
    ).double()
    step = float(function(w, bits=3, granularity=PerTensor()).planes[0].scale_RG)
    assert ((samples - w).abs() <= step * (1 + 1e-5)).all()
    assert ((samples.mean(0) - w).abs() <= 5 * step / 2 / math.sqrt(draws) + 1e-6).all()
    assert (samples.std(0) > 0).sum() >= 35, "nothing was random"


def test_quantizing_twice_changes_nothing_where_the_grid_is_exact():
    """With a power-of-two step there is no rounding error: Q(Q(w)) = Q(w)."""
    w = torch.tensor([[0.0, 7.0, 2.5, 3.6, 4.5, 1.5]])
    once = uniform_affine(w, bits=3, granularity=PerTensor()).dequantize()
    assert once.tolist() == [[0.0, 7.0, 2.0, 4.0, 4.0, 2.0]], "ties go to even"
    assert torch.equal(uniform_affine(once, bits=3, granularity=PerTensor()).dequantize(), once)


def test_initial_points_are_percentiles_of_the_scaled_weights():
    """Against numpy's percentile, over per-bucket scaled weights without the pruned ones."""
    w = torch.randn(5, 13)
    mask = torch.rand(5, 13) > 0.3
    scaled = []
    for group in oracles.groups_of((5, 13), Bucket(8)):
        values = np.array([w.flatten()[i] for i in group if mask.flatten()[i]], np.float32)
        if values.size:
            scaled.extend((values - values.min()) / (np.ptp(values) or 1))
    found = initial_points(w, mask, count=7, granularity=Bucket(8), quantiles=True)
    np.testing.assert_allclose(found.numpy(), np.percentile(scaled, np.linspace(0, 100, 7)), atol=1e-6)
    even = initial_points(w, mask, count=5, granularity=Bucket(8), quantiles=False)
    assert even.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_initial_points_of_a_fully_pruned_weight_are_even():
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    points = initial_points(torch.randn(3, 4), nothing, count=3, granularity=PerTensor(), quantiles=True)
    assert points.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("bits", "dead_zone"), [(2, False), (2, True), (3, False), (8, True)])
def test_learned_steps_start_where_the_error_is_least(bits, dead_zone):
    """Against every step of a fine grid, group by group, over the weights that are not pruned."""
    torch.manual_seed(0)
    w, mask = torch.randn(3, 40), torch.rand(3, 40) > 0.3

    def errors(step):
        found = uniform_step(w, mask, bits=bits, step_RG=step, granularity=PerGroup(16), dead_zone=dead_zone).dequantize()
        return torch.stack([part.sum(-1) for part in ((found - w).square() * mask).split(16, dim=1)], dim=1)

    spec = LearnedStep(bits, granularity=PerGroup(16), dead_zone=dead_zone, start="error")
    least = torch.stack([errors(torch.full((3, 3), float(step))) for step in torch.linspace(0.005, 4, 1500)]).amin(0)
    found = errors(spec.initial_state(w, mask)["step"].value)
    assert bool((found <= 1.05 * least + 1e-3).all())


def test_the_error_of_learned_steps_of_two_bits_on_gaussian_weights():
    torch.manual_seed(0)
    w = torch.randn(1, 100_000)

    def error(**options):
        spec = LearnedStep(2, **options)
        state = {name: each.value for name, each in spec.initial_state(w, None).items()}
        return float((spec.quantize(w, None, state).dequantize() - w).square().mean())

    assert error(dead_zone=False, start="mean") == pytest.approx(0.991, abs=0.01), "no better than zeros"
    assert error(dead_zone=True) == pytest.approx(0.224, abs=0.01)
    assert error(dead_zone=False) < 0.364, "better than one bit"
    assert error(dead_zone=False) == error(dead_zone=False, start="error")
    with pytest.raises(SpecError, match="a known start, got 'zero'"):
        LearnedStep(2, start="zero")
