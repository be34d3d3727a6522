"""Masks that change during a stage, and the weights behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitstill.errors import SpecError
from bitstill.losses.logits import CrossEntropy
from bitstill.model.compressed_layers import pruning_transform
from bitstill.model.lifecycle import prepare
from bitstill.model.prune import move_masks
from bitstill.quant.masks import magnitude_mask
from bitstill.quant.rules import Compression, LearnedStep, Prune
from bitstill.schedules import Cubic, Linear
from bitstill.train.actions import Compress
from bitstill.train.loop import train
from bitstill.train.optim import SGD
from bitstill.train.pruning import Pruning
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term

from .tiny import network, task

CE = Term(CrossEntropy())
QUIET = Settings(progress=False, device="cpu")


def rule(**changes: Any) -> Compression:
    return Compression(weight=LearnedStep(4, dead_zone=False), prune=Prune(0.0, **changes))


def stage(pruning: Pruning, steps: int = 20, **changes: Any) -> Stage:
    begin = (Compress("student", changes.pop("rule", rule())),)
    settings: dict[str, Any] = {"terms": (CE,), "batch_size": 16, "optimizer": SGD(0.05), "begin": begin}
    return Stage("prune", steps=steps, pruning=pruning, **(settings | changes))


def sparsities(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For every layer with a mask: the number of pruned weights, and of all weights."""
    masks = {name: transform.mask for name, m in model.named_modules() if (transform := pruning_transform(m)) is not None}
    return {name: (int((~mask).sum()), mask.numel()) for name, mask in masks.items() if mask is not None}


class Seen:
    """Records the sparsity at which masks are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sparsities: list[float] = []

        def record(model: nn.Module, sparsity: float) -> None:
            self.sparsities.append(sparsity)
            move_masks(model, sparsity)

        monkeypatch.setattr("bitstill.train.pruning.move_masks", record)


@pytest.mark.parametrize(
    ("schedule", "until", "wanted"),
    [
        (Cubic(0.0, 0.8, until=0.5), 0.5, [0.8 * (1 - (1 - step / 10) ** 3) for step in (0, 4, 8)] + [0.8]),
        (Linear(0.0, 0.6), 1.0, [0.6 * step / 20 for step in (0, 4, 8, 12, 16)] + [0.6]),
        (0.7, 0.05, [0.7]),
    ],
)
def test_masks_move_at_their_interval_and_end_at_the_asked_sparsity(schedule, until, wanted, monkeypatch):
    seen = Seen(monkeypatch)
    models: dict[str, nn.Module] = {"student": network(1)}
    train([stage(Pruning(schedule, every=4, until=until))], models, task(), QUIET)
    assert seen.sparsities == pytest.approx(wanted)
    for pruned, weights in sparsities(models["student"]).values():
        assert pruned == round(wanted[-1] * weights)


def test_a_global_ranking_prunes_that_many_in_all():
    models: dict[str, nn.Module] = {"student": network(1, width=20)}
    train([stage(Pruning(0.55), rule=rule(scope="global"))], models, task(), QUIET)
    found = sparsities(models["student"])
    total = sum(weights for _, weights in found.values())
    assert sum(pruned for pruned, _ in found.values()) == round(0.55 * total)
    assert len({pruned / weights for pruned, weights in found.values()}) == 2, "layers differ"


def test_masks_are_those_of_the_weights_as_they_are():
    model = network(3)
    prepare(model, rule())
    with torch.no_grad():
        model[0].weight[2] *= 100
    move_masks(model, 0.5)
    for layer in (model[0], model[3]):
        assert torch.equal(layer.weight_transform.mask, magnitude_mask(layer.weight, 0.5))
    with torch.no_grad():  # a pruned weight that has grown large comes back
        place = tuple((~model[0].weight_transform.mask).nonzero()[0])
        model[0].weight[place] = 1e3
    move_masks(model, 0.5)
    assert bool(model[0].weight_transform.mask[place])


def test_n_of_m_holds_in_every_group_while_the_sparsity_grows():
    models: dict[str, nn.Module] = {"student": network(1, width=8)}
    two_of_four = Compression(weight=LearnedStep(4), prune=Prune(0.0, within=4), targets=("3",))
    train([stage(Pruning(Linear(0.0, 0.5)), rule=two_of_four)], models, task(), QUIET)
    mask = models["student"][3].weight_transform.mask
    assert torch.equal(mask.reshape(-1, 4).sum(-1), torch.full((6,), 2))


def test_what_momentum_and_decay_do_to_pruned_weights():
    """They get no gradient but stay in the optimizer: earlier momentum still moves them, and decay shrinks them."""
    model = network(4)
    prepare(model, rule())
    weight = model[0].weight
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5, weight_decay=0.01)
    x, labels = torch.randn(16, 6), torch.randint(3, (16,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    step()
    move_masks(model, 0.5)
    pruned = ~model[0].weight_transform.mask
    wanted, velocity = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
    for _ in range(3):
        step()
        velocity = 0.5 * velocity + 0.01 * wanted
        wanted = wanted - 0.1 * velocity
        torch.testing.assert_close(weight[pruned], wanted[pruned], rtol=1e-6, atol=1e-8)
        assert float(weight.grad[pruned].abs().max()) == 0.0
        assert not model[0].effective_weight()[pruned].any()


def test_dense_gradients_reach_pruned_weights():
    model = network(4)
    prepare(model, rule(gradient="dense"))
    move_masks(model, 0.5)
    torch.nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
    assert float(model[0].weight.grad[~model[0].weight_transform.mask].abs().max()) > 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prune(0.3, within=4), "a whole number of zeros"),
        (lambda: Prune(0.5, within=4, scope="global"), "scope='layer'"),
        (lambda: stage(Pruning(0.5, model="teacher")), "a trained model to prune, got 'teacher'"),
        (lambda: stage(Pruning(0.5), keep="best", validations=2), "keep='last' while masks move"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(SpecError, match=f"(?i){message}"):
        make()


def test_a_model_without_masks_is_refused():
    with pytest.raises(SpecError, match="a model with layers that prune, got none"):
        train([stage(Pruning(0.5), rule=Compression(weight=LearnedStep(4)))], {"student": network(1)}, task(), QUIET)


def test_rows_that_n_of_m_does_not_divide_are_refused_by_the_layer():
    with pytest.raises(SpecError, match="rows that 4 divides, got rows of 6 weights"):
        prepare(network(1), rule(within=4))
