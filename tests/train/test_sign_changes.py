"""The number of signs that a schedule can flip, and the warning if most cannot."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bitstill.losses.logits import CrossEntropy
from bitstill.model.lifecycle import prepare
from bitstill.quant.rules import Binary, Compression, SplitBinary, Ternary
from bitstill.schedules import WarmupLinear
from bitstill.train.actions import Compress
from bitstill.train.loop import train
from bitstill.train.optim import SGD, AdamW
from bitstill.train.settings import Settings
from bitstill.train.sign_changes import adam_reach, fraction_within
from bitstill.train.stage import Stage, Term

from .tiny import network, task

QUIET = Settings(progress=False, device="cpu")


def gaussian(std: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    nn.init.normal_(model[0].weight, std=std)
    prepare(model, Compression(weight=Binary()))
    return model


@pytest.mark.parametrize(("lr", "steps", "reach"), [(1e-4, 100, 0.0175), (3e-4, 300, 0.1575)])
def test_two_stages_of_a_short_chain_reach_less_than_a_long_one(lr, steps, reach):
    """Stage I at 2.5 times the rate of Stage II, each rising over a tenth and falling to zero."""
    total = sum(adam_reach(AdamW(WarmupLinear(rate, warmup=0.1)), steps) for rate in (2.5 * lr, lr))
    assert total == pytest.approx(reach, rel=0.01)
    for std in (0.04, 0.11):
        within = math.erf(total / std / math.sqrt(2))
        assert fraction_within(gaussian(std), total) == pytest.approx(within, abs=0.01)


def test_scaled_to_the_spread_of_a_small_encoder_they_are_an_eighth_and_nearly_all_of_the_signs():
    assert fraction_within(gaussian(0.11), 0.0175) == pytest.approx(0.126, abs=0.01)
    assert fraction_within(gaussian(0.068), 0.1575) == pytest.approx(0.979, abs=0.01)


@pytest.mark.parametrize("corrected", [True, False])
def test_adam_reaches_what_is_said_at_a_constant_gradient(corrected):
    rule = AdamW(0.01, weight_decay=0.0, bias_correction=corrected)
    weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    optimizer = rule.build([{"params": [weight], "weight_decay": 0.0}])
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert -weight.item() == pytest.approx(adam_reach(rule, 50), rel=1e-5)


def test_both_planes_count_and_other_quantizers_do_not():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    for layer, value in zip(model, (1.0, 2.0, 0.0), strict=True):
        nn.init.constant_(layer.weight, value)
    rules = [Compression(weight=q, targets=(t,)) for q, t in ((Binary(), "0"), (SplitBinary(), "1"), (Ternary(), "2"))]
    prepare(model, rules)
    with torch.no_grad():
        model[1].weight_transform.latents["second"].fill_(0.5)
    assert [fraction_within(model, reach) for reach in (0.5, 1.0, 2.0)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert fraction_within(nn.Linear(3, 3), 1.0) is None


def stages(lr: float, **options) -> list[Stage]:
    rule = Compress("student", Compression(weight=Binary()))
    first = Stage("one", terms=(Term(CrossEntropy()),), steps=3, batch_size=8, optimizer=AdamW(lr), begin=(rule,))
    return [replace(first, **options), replace(first, name="two", begin=())]


def test_a_schedule_too_short_warns_once_for_all_stages_that_continue_each_other():
    with pytest.warns(
        UserWarning, match=r"stage 'one': at most .*% of the binary weights of 'student' can change sign"
    ) as caught:
        history = train(stages(1e-5), {"student": network(0)}, task(), QUIET)
    assert len(caught) == 1
    (entry,) = [entry for entry in history if "can_change_sign" in entry]
    assert entry["stage"] == "one" and entry["can_change_sign"] < 0.01


@pytest.mark.filterwarnings("error")
def test_long_schedules_float_stages_and_unbounded_optimizers_do_not_warn():
    (entry,) = [e for e in train(stages(1.0), {"student": network(0)}, task(), QUIET) if "can_change_sign" in e]
    assert entry["can_change_sign"] == 1.0
    for options in ({"begin": ()}, {"optimizer": SGD(1e-5)}):
        first, _ = stages(1e-5, **options)
        assert not any("can_change_sign" in entry for entry in train([first], {"student": network(0)}, task(), QUIET))
