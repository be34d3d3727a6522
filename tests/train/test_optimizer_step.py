"""After an optimizer's step: curvatures are the root of Adam's second moment, and survive an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import bitstill.train.checkpoint as checkpoint
from bitstill.errors import SpecError
from bitstill.losses.logits import CrossEntropy
from bitstill.model.lifecycle import freeze, prepare
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.rules import Compression, Ternary
from bitstill.train.actions import Compress, SplitTernary
from bitstill.train.loop import train
from bitstill.train.optim import SGD, AdamW, Optimizer
from bitstill.train.optimizer_step import after_optimizer_step, quantizer_buffers
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term

from .tiny import network, task

RULE = Compression(weight=Ternary(iterations=3, loss_aware=True))


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_the_curvature_is_the_root_of_the_mean_squared_gradient(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5) if kind == "Linear" else Conv1D(5, 7))
    prepare(model, RULE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    moment: Tensor = torch.zeros_like(model[0].weight)
    assert torch.equal(model[0].weight_transform.curvature, torch.ones(5, 7))
    for _ in range(3):
        (model(torch.randn(4, 7)) ** 2).sum().backward()
        gradient = model[0].weight.grad.clone()
        moment = 0.99 * moment + 0.01 * gradient**2
        optimizer.step()
        after_optimizer_step(model, optimizer)
        optimizer.zero_grad()
        after_optimizer_step(model, optimizer)  # without a gradient nothing changes
    found = model[0].weight_transform.curvature
    assert torch.allclose(found, (moment if kind == "Linear" else moment.T).sqrt() + 1e-8, rtol=1e-4)


def test_a_row_without_any_gradient_is_weighed_evenly() -> None:
    torch.manual_seed(0)
    table = nn.Sequential(nn.Embedding(6, 8))
    prepare(table, RULE)
    optimizer = torch.optim.AdamW(table.parameters(), weight_decay=0.0)
    (table(torch.tensor([1, 2])) * torch.randn(8)).sum().backward()
    before = table[0].effective_weight().detach().clone()
    optimizer.step()
    after_optimizer_step(table, optimizer)
    after = table[0].effective_weight().detach()
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, False, True, True, True]


def stages(optimizer: Optimizer) -> list[Stage]:
    terms = (Term(CrossEntropy()),)
    begin = (Compress("student", RULE),)
    common: dict[str, Any] = {"terms": terms, "batch_size": 16, "optimizer": optimizer}
    return [
        Stage("ternary", steps=4, begin=begin, **common),
        Stage("binary", steps=2, begin=(SplitTernary("student"),), **common),
    ]


def run(path: Path | None, resume: bool, optimizer: Optimizer | None = None, last: int = 2) -> nn.Module:
    models: dict[str, nn.Module] = {"student": network(2)}
    settings = Settings(progress=False, device="cpu", checkpoint_every=1)
    chosen = stages(optimizer or AdamW(0.01))[:last]
    train(chosen, models, task(), settings, checkpoint_path=path, resume=resume)
    return models["student"]


def test_training_uses_it_and_the_delivered_weights_are_the_trained_ones() -> None:
    model = run(None, False, last=1)
    transforms = [module for module in model.modules() if isinstance(module, WeightTransform)]
    assert len(transforms) == 2 and all(len(t.curvature.unique()) > 4 for t in transforms)
    layer = model[0]
    without = Ternary(iterations=3).quantize(layer.weight.detach(), None, {}).dequantize()
    frozen = freeze(model)[0].weight
    assert torch.equal(frozen, layer.effective_weight()) and not torch.equal(frozen, without)


def test_a_stop_at_any_save_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, real = run(tmp_path / "whole", False).state_dict(), checkpoint.save

    class StoppedError(Exception):
        pass

    for limit in range(1, 9):
        saves: list[int] = []

        def save(*arguments: Any, limit: int = limit, saves: list[int] = saves) -> None:
            real(*arguments)
            saves.append(1)
            if len(saves) == limit:
                raise StoppedError

        path = tmp_path / f"stopped-{limit}"
        monkeypatch.setattr(checkpoint, "save", save)
        with pytest.raises(StoppedError):
            run(path, False)
        monkeypatch.setattr(checkpoint, "save", real)
        resumed = run(path, True).state_dict()
        assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole), limit


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.0, nesterov=False)])
def test_another_optimizer_is_refused(optimizer: SGD) -> None:
    with pytest.raises(SpecError, match="an Adam optimizer for loss-aware ternarization, got SGD"):
        run(None, False, optimizer)


def test_iterations_are_needed() -> None:
    with pytest.raises(SpecError, match="at least 1 of the loss-aware iterations"):
        Ternary(loss_aware=True)


def test_what_has_never_followed_an_optimizer_is_not_delivered_as_loss_aware() -> None:
    model = nn.Sequential(nn.Linear(7, 5))
    prepare(model, RULE)
    with pytest.raises(SpecError, match=r"quantizers that have followed an optimizer.*bitstill\.train\.after_optimizer_step"):
        freeze(model)


def test_two_processes_need_not_send_it() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 5))
    prepare(model, RULE)
    names = quantizer_buffers(model)
    assert (
        names == [f"{layer}.weight_transform.curvature" for layer in "01"] and set(names) <= dict(model.named_buffers()).keys()
    )
