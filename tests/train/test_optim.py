"""Optimizers, against slow loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bitstill.train.bert_adam import step_ratio
from bitstill.train.optim import AdamW, parameter_groups

RATES = [3e-3, 1e-2, 5e-3, 2e-3, 1e-3, 1e-3]


def bert_adam(start: list[float], gradients: list[list[float] | None], decay: float, eps: float) -> list[float]:
    """The update of Devlin et al.'s AdamWeightDecayOptimizer, number by number."""
    weights, first, second = list(start), [0.0] * len(start), [0.0] * len(start)
    for lr, gradient in zip(RATES, gradients, strict=True):
        for place, g in enumerate(gradient or ()):
            first[place] = 0.9 * first[place] + 0.1 * g
            second[place] = 0.999 * second[place] + 0.001 * g * g
            update = first[place] / (math.sqrt(second[place]) + eps) + decay * weights[place]
            weights[place] -= lr * update
    return weights


def test_adam_without_bias_correction_is_the_published_update_for_weights_that_miss_steps_too():
    torch.manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(1, 4, dtype=torch.float64)) for name in ("always", "sometimes", "never")}
    start = {name: parameter.flatten().tolist() for name, parameter in weights.items()}
    rule = AdamW(RATES[0], eps=1e-3, weight_decay=0.2, bias_correction=False)
    optimizer = rule.build(parameter_groups(weights.items(), rule))
    gradients: dict[str, list[list[float] | None]] = {name: [] for name in weights}
    for step, lr in enumerate(RATES):
        for name, parameter in weights.items():
            missing = name == "never" or (name == "sometimes" and step in (0, 3))
            parameter.grad = None if missing else torch.randn(1, 4, dtype=torch.float64)
            gradients[name].append(None if parameter.grad is None else parameter.grad.flatten().tolist())
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    for name, parameter in weights.items():
        assert parameter.flatten().tolist() == pytest.approx(bert_adam(start[name], gradients[name], 0.2, 1e-3), rel=1e-9)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2], "as it was given"


@pytest.mark.parametrize(("steps", "ratio"), [(1, 3.16), (100, 3.2), (1000, 1.26), (10_000, 1.0)])
def test_how_much_longer_its_steps_are(steps, ratio):
    """Under a constant gradient, where both rules give the exact distance that a weight moves."""
    assert step_ratio(steps, 0.9, 0.999) == pytest.approx(ratio, abs=0.05)
    if steps > 100:
        return
    moved = []
    for corrected in (True, False):
        weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        rule = AdamW(1e-3, weight_decay=0.0, eps=1e-30, bias_correction=corrected)
        optimizer = rule.build(parameter_groups([("weight", weight)], rule))
        for _ in range(steps):
            before = weight.item()
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved.append(before - weight.item())
    assert moved[1] / moved[0] == pytest.approx(step_ratio(steps, 0.9, 0.999), rel=1e-6)
