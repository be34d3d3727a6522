"""A stage that keeps its best weights: those of the best validation, not those of the last step."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitstill.train.checkpoint as checkpoint
import bitstill.train.loop as loop
from bitstill.data.objectives import Classification
from bitstill.data.task import evaluate
from bitstill.losses.logits import KL, CrossEntropy
from bitstill.model.lifecycle import freeze
from bitstill.quant.granularity import Bucket
from bitstill.quant.rules import Compression, Points, QuantizeInput, Uniform
from bitstill.train.actions import Compress
from bitstill.train.checkpoint import Best
from bitstill.train.loop import train
from bitstill.train.optim import SGD, AdamW
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term

from .tiny import network, task

CE = Term(CrossEntropy())
QUANTIZE = Compress("student", Compression(weight=Uniform(bits=3, granularity=Bucket(8))))
WILD = AdamW(0.5)  # large enough for the metric to fluctuate


def stage(steps: int = 14, **changes: Any) -> Stage:
    settings = {"terms": (CE,), "batch_size": 16, "optimizer": WILD, "validations": steps, "keep": "best", "begin": (QUANTIZE,)}
    return Stage("wild", steps=steps, **(settings | changes))


def student() -> nn.Module:
    """A student with dropout, and statistics that change with every batch."""
    body = network(2, dropout=0.2)
    return nn.Sequential(body[:3], nn.BatchNorm1d(8), body[3])


def go(made: Stage, **options: Any) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    models: dict[str, nn.Module] = {"student": student()}
    settings = Settings(progress=False, device="cpu", checkpoint_every=1)
    history = train([made], models, task(), settings, **options)
    return models, history


def state(models: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{name}/{key}": t.clone() for name, model in models.items() for key, t in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def judged(history: list[dict[str, Any]]) -> dict[int, float]:
    return {entry["step"]: entry["validation"] for entry in history if "validation" in entry}


def test_the_weights_at_the_end_are_those_of_the_best_validation_with_everything_that_is_saved() -> None:
    models, history = go(stage())
    values = judged(history)
    best = max(values, key=lambda step: (values[step], step))
    assert values[best] > values[14] + 5 and 1 < best < 14, "the task is one where it matters"
    assert history[-1] == {"stage": "wild", "step": best, "kept": values[best]}
    stopped, _ = go(stage(best, keep="last"))
    assert same(state(models), state(stopped)), "as if training had stopped there"
    data = task()
    assert evaluate(freeze(models["student"]), data, data.validation) == values[best]


def test_keeping_the_last_ones_is_the_default_and_logs_nothing() -> None:
    models, history = go(stage(keep="last"))
    assert not any("kept" in entry for entry in history) and Stage("s", terms=(CE,), steps=1).keep == "last"
    best, _ = go(stage())
    assert not same(state(models), state(best))


def test_judging_changes_nothing_but_what_is_kept() -> None:
    """Validating at every step gives the same loss curve as validating once at the end."""
    often, seldom = (go(stage(validations=number))[1] for number in (14, 1))
    assert [e["loss"] for e in often if "loss" in e] == [e["loss"] for e in seldom if "loss" in e]
    assert list(judged(seldom)) == [14]


def test_of_equally_good_ones_the_last_is_kept() -> None:
    """It has trained longer; once the metric is saturated, the first may hardly have trained."""
    frozen = stage(6, optimizer=SGD(0.0), begin=())
    models: dict[str, nn.Module] = {"student": network(1)}
    before = copy.deepcopy(models["student"].state_dict())
    history = train([frozen], models, task(), Settings(progress=False, device="cpu"))
    assert len(set(judged(history).values())) == 1 and history[-1]["step"] == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in models["student"].state_dict().items())


@pytest.mark.parametrize(
    ("steps", "validations", "wanted"),
    [(12, 4, [3, 6, 9, 12]), (10, 3, [3, 6, 9, 10]), (5, 99, [1, 2, 3, 4, 5]), (7, 1, [7]), (18, None, [6, 12, 18])],
)
def test_validations_are_spread_over_the_stage_and_end_it(steps: int, validations: int | None, wanted: list[int]) -> None:
    _, history = go(stage(steps, validations=validations))
    assert list(judged(history)) == wanted


def test_without_a_number_of_validations_there_is_one_per_epoch_but_at_most_twenty() -> None:
    assert Stage("s", terms=(CE,), epochs=5, batch_size=16).validate_every(96) == 6
    assert Stage("s", terms=(CE,), epochs=50, batch_size=16).validate_every(96) == 300 // 20
    assert Stage("s", terms=(CE,), epochs=0.5, batch_size=16).validate_every(96) == 3


def test_every_model_that_learns_goes_back_and_no_other() -> None:
    both = stage(
        terms=(Term(KL(), "student", "peer"), CE, Term(KL(), "peer", "student"), Term(KL(), "student", "teacher")),
        train=("student", "peer"),
    )

    def models() -> dict[str, nn.Module]:
        return {"student": student(), "peer": network(5), "teacher": network(6)}

    settings = Settings(progress=False, device="cpu")
    kept, stopped = models(), models()
    history = train([both], kept, task(), settings)
    best = history[-1]["step"]
    assert best < 14
    teacher = copy.deepcopy(kept["teacher"].state_dict())
    train([Stage(**{**vars(both), "steps": best, "keep": "last"})], stopped, task(), settings)
    # Within rounding: cached teacher outputs are computed in other batches than fresh ones.
    ours, wanted = (state({name: found[name] for name in ("student", "peer")}) for found in (kept, stopped))
    assert ours.keys() == wanted.keys() and all(torch.allclose(ours[name], wanted[name], atol=1e-5) for name in ours)
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in network(6).state_dict().items())


def test_learned_points_go_back_too_and_stay_the_same_parameters() -> None:
    points = Compress("student", Compression(weight=Points(count=5, granularity=Bucket(8))))
    models: dict[str, nn.Module] = {"student": network(2)}
    made = stage(begin=(points,))
    train([made], models, task(), Settings(progress=False, device="cpu"))
    parameters = list(models["student"].parameters())
    best = Best.of(models, 3, 50.0)
    wanted = state(models)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1)
    best.restore(models)
    assert same(state(models), wanted)
    assert all(ours is theirs for ours, theirs in zip(models["student"].parameters(), parameters, strict=True))


def test_what_is_remembered_is_a_copy_of_each_shared_tensor_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    best = Best.of({"a": model, "b": model}, 1, 1.0)
    assert sorted(best.tensors) == ["a/0.bias", "a/0.weight", "a/1.bias"]
    with torch.no_grad():
        model[0].weight.zero_()
    assert best.tensors["a/0.weight"].any()
    best.restore({"a": model, "b": model})
    assert model[0].weight.any() and model[0].weight is model[1].weight


def stages() -> list[Stage]:
    """Two stages that keep their best weights; they must not be confused."""
    second = Stage("calm", terms=(CE,), steps=2, batch_size=16, optimizer=AdamW(0.05), validations=2, keep="best")
    return [stage(5), second]


def run(path: Path, resume: bool) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    models: dict[str, nn.Module] = {"student": student()}
    settings = Settings(progress=False, device="cpu", checkpoint_every=1)
    history = train(stages(), models, task(), settings, identity={}, checkpoint_path=path, resume=resume)
    return state(models), history


def test_what_a_stage_begins_with_is_kept_where_its_steps_are_worse() -> None:
    """For example after ternary weight splitting, where the new model computes what the old one did."""
    first = stage(12, optimizer=AdamW(0.02))
    data, models = task(), {"student": student()}
    train([first], models, data, Settings(progress=False, device="cpu"))
    wanted, value = state(models), evaluate(freeze(models["student"]), data, data.validation)
    ruinous = Stage("ruin", terms=(CE,), steps=3, batch_size=16, optimizer=AdamW(20.0), validations=3, keep="best")
    models = {"student": student()}
    history = train([first, ruinous], models, data, Settings(progress=False, device="cpu"))
    values = judged([entry for entry in history if entry["stage"] == "ruin"])
    assert list(values) == [0, 1, 2, 3] and values[0] == value > max(values[1], values[2], values[3])
    assert history[-1] == {"stage": "ruin", "step": 0, "kept": value} and same(state(models), wanted)
    assert 0 not in judged([entry for entry in history if entry["stage"] != "ruin"]), "nobody had trained it"


def test_what_has_just_been_compressed_is_not_judged() -> None:
    """Learned steps of inputs, for example, are initialized from the first batch."""
    late = Compress("student", Compression(weight=Uniform(8), input=QuantizeInput(per="tensor", range="step")))
    plain = Stage("plain", terms=(CE,), steps=1, batch_size=16)
    stepped = Stage("stepped", terms=(CE,), steps=2, batch_size=16, validations=2, keep="best", begin=(late,))
    history = train([plain, stepped], {"student": network(2)}, task(), Settings(progress=False, device="cpu"))
    assert list(judged([entry for entry in history if entry["stage"] == "stepped"])) == [1, 2]


def test_a_run_that_is_stopped_at_any_save_and_resumed_keeps_the_same_bytes(tmp_path: Path, monkeypatch) -> None:
    whole, history = run(tmp_path / "whole", resume=False)
    kept = [entry for entry in history if "kept" in entry]
    assert [entry["stage"] for entry in kept] == ["wild", "calm"] and kept[0]["step"] < 5
    real = checkpoint.save

    class StoppedError(Exception):
        pass

    # One save at the start of a stage, one for each step, one at its end.
    for stop_after in range(1, 12):
        saves = 0

        def save(*arguments: Any, limit: int = stop_after) -> None:
            nonlocal saves
            saves += 1
            real(*arguments)
            if saves == limit:
                raise StoppedError

        path = tmp_path / f"stopped-{stop_after}"
        monkeypatch.setattr(checkpoint, "save", save)
        with pytest.raises(StoppedError):
            run(path, resume=False)
        monkeypatch.setattr(checkpoint, "save", real)
        resumed, again = run(path, resume=True)
        assert same(resumed, whole), stop_after
        assert judged(again) == judged(history) and [e for e in again if "kept" in e] == kept, stop_after


def test_a_run_killed_while_a_better_one_is_being_saved_does_not_lose_the_step(tmp_path: Path, monkeypatch) -> None:
    """Checkpoints are rarer than validations: the best since the last checkpoint is found again, not misremembered."""

    def once(path: Path | None, resume: bool) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
        models: dict[str, nn.Module] = {"student": student()}
        settings = Settings(progress=False, device="cpu", checkpoint_every=7)
        history = train([stage()], models, task(), settings, identity={}, checkpoint_path=path, resume=resume)
        return models, history

    whole, history = once(None, False)
    real, calls = loop._keep_best, 0

    def stops(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        real(*arguments)
        if calls == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_keep_best", stops)
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "c", False)
    monkeypatch.setattr(loop, "_keep_best", real)
    resumed, again = once(tmp_path / "c", True)
    assert same(state(resumed), state(whole)) and again == history


def test_a_metric_that_is_not_a_number_is_never_the_best() -> None:
    values = iter([float("nan"), 3.0, float("nan"), 7.0, 5.0, float("nan")])
    scripted = Classification(3, decides="scripted", extra_metrics={"scripted": lambda _logits, _labels: next(values)})
    models: dict[str, nn.Module] = {"student": network(2)}
    history = train([stage(6)], models, replace(task(), objective=scripted), Settings(progress=False, device="cpu"))
    assert history[-1]["step"] == 4 and history[-1]["kept"] == 7.0
