"""Gradient rules of weights, against formulas written as loops and against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.base import OptimizerStep
from bitstill.quant.gradients import straight_through
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor, grid_of
from bitstill.quant.inputs import round_ste, scale_gradient
from bitstill.quant.rules import Binary, Clipped, ExactScale, LearnedStep, Points, Prune, Quantizer, Ternary, Uniform
from tests.pairwise import pairwise
from tests.quant import oracles

GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(3), Bucket(4), Bucket(1000)]


def _gradient(spec: Quantizer, w: Tensor, upstream: Tensor, prune: Prune | None = None) -> tuple[Tensor, WeightTransform]:
    transform = WeightTransform(spec, w, prune)
    latent = w.clone().requires_grad_()
    (transform(latent) * upstream).sum().backward()
    assert latent.grad is not None
    return latent.grad, transform


@pytest.mark.parametrize("spec", [Uniform(3), Uniform(4, symmetric=True), Binary(), Ternary(), Points(5)])
def test_straight_through_passes_the_gradient_unchanged(spec, exact):
    w, upstream = torch.randn(4, 7), torch.randn(4, 7)
    found, _ = _gradient(spec, w, upstream)
    assert exact(found) == exact(upstream)


@pytest.mark.parametrize("spec", [Uniform(3), Uniform(4, symmetric=True), Binary(), Ternary()])
def test_a_dense_gradient_reaches_pruned_weights_too(spec):
    w, upstream = torch.randn(4, 7), torch.randn(4, 7)
    found, _ = _gradient(spec, w, upstream, Prune(0.4, gradient="dense"))
    assert torch.equal(found, upstream)


@pytest.mark.parametrize(
    ("granularity", "prune", "dead_zone"),
    pairwise(GRANULARITIES, [None, Prune(0.3), Prune(0.3, gradient="dense")], [True, False]),
)
def test_learned_steps_have_the_published_gradients(granularity, prune, dead_zone):
    """Esser et al. (2020), eqs. 3 and 5, written out over every weight."""
    w, upstream = torch.randn(4, 7), torch.randn(4, 7)
    spec = LearnedStep(3, granularity=granularity, dead_zone=dead_zone)
    transform = WeightTransform(spec, w, prune)
    with torch.no_grad():
        transform.learned["step"].mul_(0.6)  # so that some weights lie beyond the outer levels
    w.requires_grad_()
    effective = transform(w)
    effective.backward(upstream)
    grid = grid_of(w.shape, granularity)
    mask = torch.ones_like(w, dtype=torch.bool) if transform.mask is None else transform.mask
    step = transform.learned["step"]
    wanted, through = torch.zeros_like(step), torch.zeros_like(w)
    for flat in range(w.numel()):
        row, column = (0, flat) if grid.rows == 1 else divmod(flat, 7)
        group = column // grid.size
        value = w.flatten()[flat].item() / step[row, group].item()
        level = min(3, max(-4, round(value)))
        if level == 0 and not dead_zone:
            level = math.copysign(1, value)
        g, kept = upstream.flatten()[flat].item(), bool(mask.flatten()[flat])
        inside = -4 <= value <= 3
        assert effective.flatten()[flat].item() == pytest.approx(level * step[row, group].item() * kept, abs=1e-6)
        if kept:
            wanted[row, group] += g * (level - value if inside else level) / math.sqrt(grid.size * 3)
        if inside and (kept or (prune is not None and prune.gradient == "dense")):
            through.view(-1)[flat] = g
    assert step.grad is not None and w.grad is not None
    torch.testing.assert_close(step.grad, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(w.grad, through)


@pytest.mark.parametrize("spec", [Uniform(3), Uniform(4, symmetric=True), Binary(), Ternary(), Points(5)])
def test_no_gradient_reaches_a_pruned_weight(spec):
    w, upstream = torch.randn(4, 7), torch.randn(4, 7)
    found, transform = _gradient(spec, w, upstream, Prune(0.4))
    assert int((~transform.mask).sum()) == round(0.4 * 28)
    assert torch.equal(found, upstream * transform.mask)


@pytest.mark.parametrize(("granularity", "prune", "kind"), pairwise(GRANULARITIES, [None, Prune(0.3)], [Binary, Ternary]))
def test_learned_scales_start_at_the_formula_and_gain_the_sum_over_their_group(kind, granularity, prune):
    w, upstream = torch.randn(4, 7), torch.randn(4, 7)
    spec = kind(granularity=granularity, learned_scale=True)
    found, transform = _gradient(spec, w, upstream, prune)
    plain = WeightTransform(kind(granularity=granularity), w, prune)
    assert torch.equal(transform(w), plain(w))
    assert torch.equal(found, upstream if transform.mask is None else upstream * transform.mask)
    # The effective weight is linear in the scales: perturbing one moves the loss by exactly its gradient.
    scale = transform.learned["scale"]
    assert scale.grad is not None
    for place in np.ndindex(*scale.shape):
        before = float((transform(w) * upstream).sum().detach())
        with torch.no_grad():
            scale[place] += 0.5
        after = float((transform(w) * upstream).sum().detach())
        with torch.no_grad():
            scale[place] -= 0.5
        assert (after - before) / 0.5 == pytest.approx(float(scale.grad[place]), abs=1e-4)


@pytest.mark.parametrize("prune", [None, Prune(0.3)])
@pytest.mark.parametrize(
    "spec", [Uniform(3, gradient=Clipped(0.5)), Binary(gradient=Clipped(0.5)), Ternary(gradient=Clipped(0.5))]
)
def test_clipped_quantizes_the_clipped_weight_and_stops_the_gradient_outside(spec, prune):
    w, upstream = torch.randn(4, 7), torch.randn(4, 7)
    found, transform = _gradient(spec, w, upstream, prune)
    inside = w.abs() <= 0.5
    keep = torch.ones_like(inside) if transform.mask is None else transform.mask
    assert torch.equal(found, upstream * (inside & keep))
    plain = type(spec)(**{"bits": 3} if isinstance(spec, Uniform) else {}, granularity=spec.granularity)
    other = WeightTransform(plain, w, prune)
    assert torch.equal(transform(w), other.quantize(w.clamp(-0.5, 0.5)).dequantize())


@pytest.mark.parametrize("prune", [None, Prune(0.3)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_exact_scale_is_the_published_formula(granularity, prune):
    """g at arg-max += c, at arg-min -= c, with c = sum_j g_j (q_j - v_j) over the group (Polino et al.'s second rule)."""
    w, upstream = torch.randn(5, 7), torch.randn(5, 7)
    found, transform = _gradient(Uniform(2, granularity=granularity, gradient=ExactScale()), w, upstream, prune)
    keep = np.ones(35, bool) if transform.mask is None else transform.mask.numpy().ravel()
    flat, g = w.double().numpy().ravel(), upstream.double().numpy().ravel()
    wanted = g * keep
    for group in oracles.groups_of((5, 7), granularity):
        counted = [i for i in group if keep[i]]
        if not counted or np.ptp(flat[counted]) == 0:
            continue
        low, spread = flat[counted].min(), np.ptp(flat[counted])
        v = (flat[counted] - low) / spread
        c = float((g[counted] * (np.round(3 * v) / 3 - v)).sum())
        wanted[counted[int(np.argmax(flat[counted]))]] += c
        wanted[counted[int(np.argmin(flat[counted]))]] -= c
    np.testing.assert_allclose(found.numpy().ravel(), wanted, atol=2e-6)


def test_exact_scale_agrees_with_finite_differences():
    """With the rounding residual held fixed, Q is smooth in w: low + (max - low) (v + residual)."""
    w, upstream = torch.randn(3, 6), torch.randn(3, 6).double()
    found, _ = _gradient(Uniform(2, granularity=PerChannel(), gradient=ExactScale()), w, upstream.float())
    base = w.double()
    low, high = base.amin(1, keepdim=True), base.amax(1, keepdim=True)
    v = (base - low) / (high - low)
    residual = torch.round(3 * v) / 3 - v

    def smooth(x: Tensor) -> float:
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        return float((upstream * (low + (high - low) * ((x - low) / (high - low) + residual))).sum())

    for i in range(3):
        for j in range(6):
            up, down = base.clone(), base.clone()
            up[i, j] += 1e-5
            down[i, j] -= 1e-5
            assert (smooth(up) - smooth(down)) / 2e-5 == pytest.approx(float(found[i, j]), abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_exact_scale_of_a_constant_group_is_straight_through(value):
    upstream = torch.randn(2, 5)
    found, _ = _gradient(Uniform(2, gradient=ExactScale()), torch.full((2, 5), value), upstream)
    assert torch.equal(found, upstream)


@pytest.mark.parametrize("prune", [None, Prune(0.3)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_points_gradient_is_the_published_formula(granularity, prune):
    """dL/dp_j = sum over weights at point j of their group's range times dL/dq (Polino et al. 2018, section 4.1)."""
    w, upstream = torch.randn(5, 7), torch.randn(5, 7)
    transform = WeightTransform(Points(5, granularity=granularity), w, prune)
    points = torch.tensor([0.9, 0.0, 0.35, 1.0, 0.6])  # not in order: the gradient must find its own point
    transform.learned["points"] = nn.Parameter(points)
    (transform(w) * upstream).sum().backward()
    keep = np.ones(35, bool) if transform.mask is None else transform.mask.numpy().ravel()
    flat, g, wanted = w.numpy().ravel(), upstream.numpy().ravel(), np.zeros(5)
    for group in oracles.groups_of((5, 7), granularity):
        counted = [i for i in group if keep[i]]
        if not counted:
            continue
        spread = np.ptp(flat[counted]) or 1.0
        for i in counted:
            v = (flat[i] - flat[counted].min()) / spread
            wanted[int(np.argmin(np.abs(points.numpy() - v)))] += spread * g[i]
    np.testing.assert_allclose(transform.learned["points"].grad.numpy(), wanted, atol=1e-5)


def test_points_gradient_agrees_with_finite_differences():
    w, upstream = torch.randn(4, 6), torch.randn(4, 6)
    transform = WeightTransform(Points(4, granularity=PerChannel()), w)
    (transform(w) * upstream).sum().backward()
    for j in range(4):
        values = []
        for nudge in (1e-3, -1e-3):
            other = WeightTransform(Points(4, granularity=PerChannel()), w)
            moved = transform.learned["points"].detach().clone()
            moved[j] += nudge
            other.learned["points"] = nn.Parameter(moved)
            assert torch.equal(other.quantize(w).codes()[0], transform.quantize(w).codes()[0]), "no weight changed its point"
            values.append(float((other(w).detach().double() * upstream).sum()))
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(transform.learned["points"].grad[j]), abs=2e-3)


def test_points_are_put_in_order_after_a_step_and_stay_the_same_parameter():
    transform = WeightTransform(Points(4), torch.randn(4, 6))
    parameter = transform.learned["points"]
    with torch.no_grad():
        parameter.copy_(torch.tensor([0.7, 0.1, 0.9, 0.2]))
    transform.after_step(OptimizerStep("layer", "SGD", None, None))
    assert transform.learned["points"] is parameter
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.1, 0.2, 0.7, 0.9]), rtol=0, atol=0)


@given(st.integers(0, 2**32))
def test_forward_is_the_quantized_weight_itself_where_the_usual_spelling_is_not(seed):
    """The forward pass gives every bit of Q(w)."""
    w = torch.randn(64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    effective = torch.where(w.detach() >= 0, 1.0, -1.0) * w.detach().abs().mean()
    assert straight_through(w, effective).detach().numpy().tobytes() == effective.numpy().tobytes()


def test_the_usual_spelling_would_not_be_exact():
    """The reason for `straight_through`; if this ever fails, w + (Q(w) - w).detach() is enough."""
    w = torch.randn(1000)
    effective = torch.where(w >= 0, 1.0, -1.0) * w.abs().mean()
    assert not torch.equal(w + (effective - w), effective)


def test_round_ste_and_scale_gradient():
    x = torch.tensor([0.5, 1.5, -0.4, 2.6], requires_grad=True)
    y = round_ste(scale_gradient(x, 0.25))
    assert y.tolist() == [0.0, 2.0, -0.0, 3.0]
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad.tolist() == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "spec", [Uniform(3), Uniform(3, gradient=Clipped()), Uniform(2, gradient=ExactScale()), Points(3), Ternary()]
)
def test_bfloat16_weights_receive_bfloat16_gradients(spec):
    w = torch.randn(4, 6, dtype=torch.bfloat16)
    upstream = torch.randn(4, 6, dtype=torch.bfloat16)
    found, transform = _gradient(spec, w, upstream)
    assert found.dtype == torch.bfloat16
    assert transform(w).dtype == torch.bfloat16
    assert torch.equal(transform(w), transform.quantize(w.float()).dequantize().bfloat16())
