"""Input quantizers, against published formulas and a manual version of ONNX's operator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstill.quant.inputs import dynamic_asymmetric, dynamic_symmetric, initial_step, learned_clip, learned_step, shared_dims

arrays = st.builds(
    lambda seed, shape, scale, shift: (np.random.default_rng(seed).standard_normal(shape) * scale + shift).astype(np.float32),
    st.integers(0, 2**32),
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    st.sampled_from([0.0, 1e-42, 1e-30, 1.0, 1e30]),
    st.sampled_from([0.0, 3.0, -3.0]),
)


def onnx_dynamic_quantize_linear(x: np.ndarray) -> np.ndarray:
    """ONNX operator DynamicQuantizeLinear (opset 11) as its specification states it, then dequantized."""
    x_max, x_min = np.float32(max(0, x.max())), np.float32(min(0, x.min()))
    scale = np.float32(np.float32(x_max - x_min) / np.float32(255))
    if scale < np.finfo(np.float32).tiny:
        scale = np.float32(1)
    zero = np.clip(np.round(np.float32(np.float32(0) - x_min) / scale), 0, 255)
    codes = np.clip(np.round((x / scale).astype(np.float32)) + zero, 0, 255)
    return ((codes - zero) * scale).astype(np.float32)


@given(arrays)
def test_8_bit_asymmetric_per_tensor_is_onnx_dynamic_quantize_linear(x):
    found = dynamic_asymmetric(torch.from_numpy(x), bits=8, per="tensor")
    np.testing.assert_array_equal(found.numpy(), onnx_dynamic_quantize_linear(x))


def test_a_worked_example():
    """The ONNX specification's example: x = [0, 2, -3, -2.5, 1.34, 0.5] gives scale 0.0196 and zero point 153."""
    x = torch.tensor([0, 2, -3, -2.5, 1.34, 0.5])
    scale = 5 / 255
    codes = [153, 255, 0, 26, 221, 179]
    wanted = torch.tensor([(c - 153) * scale for c in codes])
    torch.testing.assert_close(dynamic_asymmetric(x, bits=8, per="tensor"), wanted, rtol=1e-6, atol=1e-7)


def _slices(x: np.ndarray, per: str) -> list[tuple]:
    match per:
        case "token":
            return [(*index, slice(None)) for index in np.ndindex(x.shape[:-1])]
        case "sample":
            return [(i,) for i in range(len(x))] if x.ndim > 1 else [(...,)]
    return [(...,)]


@given(arrays, st.integers(2, 8), st.sampled_from(["token", "sample", "tensor"]))
def test_symmetric_is_the_loop(x, bits, per):
    wanted, top = np.empty_like(x), np.float32(2 ** (bits - 1) - 1)
    for part in _slices(x, per):
        scale = np.float32(np.abs(x[part]).max() / top)
        scale = scale if scale >= np.finfo(np.float32).tiny else np.float32(1)
        wanted[part] = np.round(x[part] / scale) * scale
    np.testing.assert_array_equal(dynamic_symmetric(torch.from_numpy(x), bits=bits, per=per).numpy(), wanted)


@given(arrays, st.integers(2, 8), st.sampled_from(["token", "sample", "tensor"]))
def test_asymmetric_has_few_levels_keeps_zero_and_stays_within_a_step(x, bits, per):
    found = dynamic_asymmetric(torch.from_numpy(x), bits=bits, per=per).numpy()
    assert np.isfinite(found).all()
    for part in _slices(x, per):
        spread = max(0.0, float(x[part].max())) - min(0.0, float(x[part].min()))
        assert len(np.unique(found[part])) <= 2**bits
        assert np.abs(found[part].astype(np.float64) - x[part]).max() <= spread / (2**bits - 1) * (1 + 1e-4) + 1e-37
    assert (found[x == 0] == 0).all()


@pytest.mark.parametrize("function", [dynamic_symmetric, dynamic_asymmetric])
def test_dynamic_gradient_is_straight_through(function):
    x, upstream = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8)
    function(x, bits=4, per="token").backward(upstream)
    torch.testing.assert_close(x.grad, upstream)


@pytest.mark.parametrize("symmetric", [True, False])
def test_learned_clip_gradients_are_pact(symmetric):
    """Zero beyond the bounds; each bound receives the sum of the upstream gradients beyond it (Choi et al. 2018)."""
    x = torch.randn(200, requires_grad=True)
    low, high, upstream = torch.tensor(-0.8, requires_grad=True), torch.tensor(0.5, requires_grad=True), torch.randn(200)
    y = learned_clip(x, low, high, bits=8, symmetric=symmetric)
    y.backward(upstream)
    below, above = x.detach() < -0.8, x.detach() > 0.5
    torch.testing.assert_close(x.grad, torch.where(below | above, 0.0, upstream))
    torch.testing.assert_close(low.grad, upstream[below].sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(high.grad, upstream[above].sum(), rtol=1e-4, atol=1e-5)
    quantize = dynamic_symmetric if symmetric else dynamic_asymmetric
    assert torch.equal(y, quantize(x.detach().clamp(-0.8, 0.5), bits=8, per="tensor"))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_step_forward_and_gradient_are_lsq(bits, symmetric):
    """Esser et al. (2020), eqs. 1 to 3: ds = sum g (round(v) - v inside, -n or p outside) / sqrt(numel p)."""
    x = (torch.randn(300) * 2).requires_grad_()
    step, upstream = torch.tensor(0.37, requires_grad=True), torch.randn(300)
    y = learned_step(x, step, bits=bits, symmetric=symmetric)
    y.backward(upstream)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    values, g = x.detach().double().numpy(), upstream.double().numpy()
    shift = 0.0 if symmetric else values.min()
    wanted, step_gradient, x_gradient = [], 0.0, []
    for value, gradient in zip(values, g, strict=True):
        v = (value - shift) / float(step.detach())
        code = min(max(round(v), low), high)
        wanted.append(code * float(step.detach()) + shift)
        inside = low <= v <= high
        step_gradient += gradient * (code - v if inside else code)
        x_gradient.append(gradient if inside else 0.0)
    np.testing.assert_allclose(y.detach().numpy(), wanted, atol=1e-5)
    assert float(step.grad) == pytest.approx(step_gradient / math.sqrt(300 * high), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), x_gradient, atol=1e-5)


@pytest.mark.parametrize(("symmetric", "factor", "top"), [(True, 2, 7), (False, 4, 15)])
def test_first_step_is_the_published_one(symmetric, factor, top):
    x = torch.randn(3, 50)
    wanted = factor * x.abs().mean() / math.sqrt(top)
    torch.testing.assert_close(initial_step(x, bits=4, symmetric=symmetric), wanted)
    assert float(initial_step(torch.zeros(4), bits=4, symmetric=symmetric)) > 0


def test_a_step_of_zero_does_not_divide_by_zero():
    y = learned_step(torch.randn(9), torch.tensor(0.0), bits=4, symmetric=True)
    assert torch.isfinite(y).all()


def test_half_precision_inputs_keep_their_type():
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    for y in (
        dynamic_symmetric(x, bits=8, per="token"),
        dynamic_asymmetric(x, bits=8, per="sample"),
        learned_clip(x, torch.tensor(-1.0), torch.tensor(1.0), bits=8, symmetric=True),
        learned_step(x, torch.tensor(0.1), bits=8, symmetric=False),
    ):
        assert y.dtype == torch.bfloat16


def test_shared_dims():
    x = torch.zeros(2, 3, 4)
    assert (shared_dims(x, "token"), shared_dims(x, "sample"), shared_dims(x, "tensor")) == ((2,), (1, 2), (0, 1, 2))
    assert shared_dims(torch.zeros(5), "sample") == (0,)
