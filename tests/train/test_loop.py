"""The training loop against slow, obvious versions."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitstill.data.objectives import Regression
from bitstill.data.shuffle import permutation
from bitstill.data.task import Split, evaluate
from bitstill.errors import CheckpointError, DataError, MatchError, SpecError, TrainingError
from bitstill.losses.features import FeatureMSE, Pair
from bitstill.losses.logits import KL, CrossEntropy, MeanSquaredError, SoftCrossEntropy
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.granularity import Bucket
from bitstill.quant.rules import Compression, Points, Uniform
from bitstill.quant.uniform import uniform_affine
from bitstill.schedules import Linear, at
from bitstill.train.actions import Compress, Copy, SharePoints
from bitstill.train.checkpoint import Checkpoint
from bitstill.train.loop import train
from bitstill.train.optim import SGD, AdamW
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term

from .tiny import network, split, task

QUIET = Settings(progress=False, device="cpu", teacher_precision="float32")
CE = Term(CrossEntropy())


def test_quantized_distillation_is_the_published_algorithm() -> None:
    """Polino et al. (2018), algorithm 1, written out: quantize, forward and backward there, restore, step on the latent."""
    data, teacher, student = task(), network(1, 12), network(2)
    by_hand = copy.deepcopy(student)
    latent = list(by_hand.parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in latent if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in latent if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    for step in range(7):
        epoch, place = divmod(step, 3)
        indices = permutation(96, 0, "order", "qd", epoch)[place * 32 : (place + 1) * 32]
        x, y = data.train.inputs["x"][indices], data.train.labels[indices]
        saved = [p.detach().clone() for p in latent]
        with torch.no_grad():
            for p in latent:
                if p.ndim > 1:
                    p.copy_(uniform_affine(p, bits=2, granularity=Bucket(16)).dequantize())
            target = teacher(x)
        logits = by_hand(x)
        soft = F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(target / 2, -1), reduction="batchmean") * 4
        loss = 0.7 * soft + 0.3 * F.cross_entropy(logits, y)
        loss.backward()
        with torch.no_grad():
            for p, s in zip(latent, saved, strict=True):
                p.copy_(s)
        for group in optimizer.param_groups:
            group["lr"] = at(Linear(0.1, 0.0), (step + 0.5) / 7)
        optimizer.step()
        optimizer.zero_grad()
    stage = Stage(
        "qd",
        terms=(Term(KL(2.0), teacher="teacher", weight=0.7), Term(CrossEntropy(), weight=0.3)),
        steps=7,
        batch_size=32,
        optimizer=SGD(Linear(0.1, 0.0), weight_decay=0.01),
        begin=(Compress("student", Compression(weight=Uniform(bits=2, granularity=Bucket(16)))),),
    )
    train([stage], {"teacher": teacher, "student": student}, data, QUIET)
    for ours, theirs in zip(student.parameters(), latent, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_frozen_teacher_does_not_change_and_is_in_eval_mode() -> None:
    teacher = nn.Sequential(network(1), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    seen: list[bool] = []
    teacher.register_forward_pre_hook(lambda module, _args: seen.append(module.training))
    stage = Stage("s", terms=(Term(KL(), teacher="teacher"),), steps=5, batch_size=32)
    train([stage], {"teacher": teacher, "student": network(2)}, task(augmented=True), QUIET)
    assert seen == [False] * 5
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_without_augmentation_the_teacher_runs_once_over_the_data() -> None:
    teacher, calls = network(1), []
    teacher.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    stage = Stage("s", terms=(Term(KL(), teacher="teacher"),), steps=12, batch_size=32)
    train([stage], {"teacher": teacher, "student": network(2)}, task(), QUIET)
    assert calls == [96]


def test_in_a_stage_of_less_than_two_epochs_a_teacher_is_asked_batch_by_batch() -> None:
    """Caching outputs of the whole split would evaluate far more samples than the stage uses."""
    calls: list[int] = []
    teacher = network(1)
    teacher.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    stage = Stage("s", terms=(Term(KL(), teacher="teacher"),), steps=3, batch_size=32)
    train([stage], {"teacher": teacher, "student": network(2)}, task(), QUIET)
    assert calls == [32, 32, 32]


def test_cached_and_fresh_teacher_outputs_train_alike() -> None:
    results = []
    for augment in (False, True):  # the task has no augmentation: ignoring u changes nothing
        data = task(augmented=augment)
        if augment:
            object.__setattr__(data, "augment", lambda batch, _u: batch)
        student = network(2)
        stage = Stage("s", terms=(Term(KL(), teacher="teacher"),), steps=6, batch_size=32)
        train([stage], {"teacher": network(1), "student": student}, data, QUIET)
        results.append(student.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6)


def test_mutual_learning_moves_both_and_detaches_both_targets() -> None:
    first, second = network(1), network(2)
    by_hand = [copy.deepcopy(first), copy.deepcopy(second)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in by_hand]
    data = task()
    for step in range(4):
        indices = permutation(96, 0, "order", "mutual", step // 3)[step % 3 * 32 :][:32]
        x = data.train.inputs["x"][indices]
        logits = [m(x) for m in by_hand]
        for i, o in enumerate(optimizers):
            o.zero_grad()
            target = logits[1 - i].detach()
            loss = F.kl_div(F.log_softmax(logits[i], -1), F.softmax(target, -1), reduction="batchmean")
            loss.backward()
        for o in optimizers:
            o.step()
    stage = Stage(
        "mutual",
        train=("first", "second"),
        terms=(Term(KL(1.0), "first", "second"), Term(KL(1.0), "second", "first")),
        steps=4,
        batch_size=32,
        optimizer=SGD(0.1, momentum=0.0, nesterov=False, weight_decay=0.0),
    )
    train([stage], {"first": first, "second": second}, data, QUIET)
    for ours, theirs in zip((first, second), by_hand, strict=True):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(parts: int) -> None:
    results = []
    for accumulate in (1, parts):
        student = network(2)
        settings = Settings(progress=False, device="cpu", accumulate=accumulate)
        train([Stage("s", terms=(CE,), steps=6, batch_size=32)], {"student": student}, task(augmented=True), settings)
        results.append(student.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6)


def test_training_does_not_touch_torchs_generator_nor_depend_on_it() -> None:
    results = []
    for seed in (1, 2):
        student = network(3, dropout=0.5)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train([Stage("s", terms=(CE,), steps=4, batch_size=32)], {"student": student}, task(augmented=True), QUIET)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(student.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_learned_only_leaves_every_weight_alone_despite_momentum_and_decay() -> None:
    student = network(2)
    rule = Compression(weight=Points(count=5, granularity=Bucket(8)))
    warm = Stage("warm", terms=(CE,), steps=5, batch_size=32)
    points = Stage("points", terms=(CE,), steps=5, batch_size=32, parameters="learned", begin=(Compress("student", rule),))
    models: dict[str, nn.Module] = {"student": student}
    train([warm], models, task(), QUIET)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    train([points], models, task(), QUIET)
    after = dict(student.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any("points" in name for name in after)
    moved = [m for m in student.modules() if isinstance(m, WeightTransform)]
    initial = [
        m.quantizer.initial_state(layer.weight.detach(), None)["points"].value
        for m, layer in zip(moved, (student[0], student[3]), strict=True)
    ]
    assert all(not torch.equal(m.learned["points"], start) for m, start in zip(moved, initial, strict=True))
    assert all(torch.equal(m.learned["points"], m.learned["points"].sort().values) for m in moved)


def test_stochastic_rounding_and_bf16_train() -> None:
    student = network(2)
    rule = Compression(weight=Uniform(bits=4, granularity=Bucket(16), rounding="stochastic"))
    stage = Stage("s", terms=(CE,), epochs=20, batch_size=32, begin=(Compress("student", rule),))
    data = task()
    before = evaluate(student, data, data.test)
    train([stage], {"student": student}, data, Settings(progress=False, device="cpu", precision="bf16"))
    assert evaluate(student, data, data.test) > max(before, 60)


@pytest.mark.parametrize("optimizer", [SGD(0.05), AdamW(0.01)])
def test_history_has_loss_and_validation_of_every_stage(optimizer: SGD | AdamW) -> None:
    stages = [
        Stage("a", terms=(CE,), epochs=1, batch_size=32, optimizer=optimizer),
        Stage("b", terms=(CE,), epochs=2, batch_size=32),
    ]
    history = train(stages, {"student": network(1)}, task(), QUIET)
    assert [entry["step"] for entry in history if entry["stage"] == "b" and "validation" in entry] == [3, 6]
    assert {entry["stage"] for entry in history if "loss" in entry} == {"a", "b"}


def test_a_term_without_gradient_is_an_error() -> None:
    data = task()
    regression = replace(data, objective=Regression())
    wide, narrow = nn.Sequential(nn.Linear(6, 1)), nn.Sequential(nn.Linear(6, 1))
    stage = Stage("s", terms=(Term(SoftCrossEntropy(), teacher="teacher"),), steps=12, batch_size=32)
    with pytest.raises(TrainingError, match=r"SoftCrossEntropy.*exactly zero"):
        train([stage], {"teacher": wide, "student": narrow}, regression, QUIET)
    stage = Stage("s", terms=(Term(MeanSquaredError(), teacher="teacher"),), steps=12, batch_size=32)
    train([stage], {"teacher": wide, "student": narrow}, regression, QUIET)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    stage = Stage("s", terms=(CE,), steps=50, batch_size=32, optimizer=SGD(1e20))
    with pytest.raises(TrainingError, match="finite loss"):
        train([stage], {"student": network(1)}, task(), QUIET)


def test_other_classes_other_models_uneven_batches() -> None:
    teacher = nn.Sequential(nn.Linear(6, 4))
    stage = Stage("s", terms=(Term(KL(), teacher="teacher"),), steps=2, batch_size=32)
    with pytest.raises(DataError, match="same classes"):
        train([stage], {"teacher": teacher, "student": network(1)}, task(), QUIET)
    with pytest.raises(SpecError, match=r"'teacher'.*Valid: student"):
        train([stage], {"student": network(1)}, task(), QUIET)
    with pytest.raises(SpecError, match="divisible by"):
        train(
            [Stage("s", terms=(CE,), steps=2, batch_size=32)],
            {"student": network(1)},
            task(),
            Settings(accumulate=3, progress=False),
        )
    feature = Stage("s", terms=(Term(FeatureMSE((Pair("0", "7"),)), teacher="teacher"),), steps=2, batch_size=32)
    with pytest.raises(MatchError, match="module to tap"):
        train([feature], {"teacher": network(2), "student": network(1)}, task(), QUIET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": (CE,)}, "a duration"),
        ({"terms": (CE,), "epochs": 0}, "duration above 0"),
        ({"terms": (CE,), "steps": 1, "epochs": 1.0}, "one of epochs and steps"),
        ({"steps": 1}, "at least one term"),
        ({"terms": (CE,), "steps": 1, "train": ()}, "at least one model"),
        ({"terms": (CE,), "steps": 1, "train": ("student", "peer")}, "a term for every trained model"),
        ({"terms": (CE, Term(CrossEntropy(), "peer")), "steps": 1}, "trained model as every term's student"),
    ],
)
def test_stages_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Stage("s", **arguments)  # type: ignore[arg-type]


def test_a_term_that_needs_a_teacher_says_so() -> None:
    with pytest.raises(SpecError, match="a teacher"):
        Term(KL())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_must_be_finite_and_not_empty(bad: float) -> None:
    good = split(4, 0)
    with pytest.raises(DataError, match="finite data"):
        Split({"x": good.inputs["x"] * bad}, good.labels)
    with pytest.raises(DataError, match="at least one sample"):
        Split({"x": torch.zeros(0, 6)}, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="as many inputs as labels"):
        Split({"x": good.inputs["x"][:2]}, good.labels)


def run(path: Path, steps: int, resume: bool, seed: int = 0) -> dict[str, nn.Module]:
    """Two stages with points, sharing, a copy and dropout; `steps` of the second."""
    models: dict[str, nn.Module] = {"teacher": network(1, 12), "student": network(2, dropout=0.3)}
    rule = Compression(weight=Points(count=6, granularity=Bucket(8)))
    stages = [
        Stage("warm", terms=(CE,), steps=4, batch_size=32, optimizer=AdamW(0.01)),
        Stage(
            "points",
            terms=(Term(KL(), teacher="self"),),
            steps=steps,
            batch_size=32,
            optimizer=AdamW(0.01),
            begin=(Copy("student", "self"), Compress("student", rule), SharePoints("student", batches=2, batch_size=32)),
        ),
    ]
    settings = Settings(seed=seed, progress=False, device="cpu", checkpoint_every=1)
    train(stages, models, task(augmented=True), settings, identity={"seed": seed}, checkpoint_path=path, resume=resume)
    return models


def test_stopping_at_every_step_and_resuming_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitstill.train.checkpoint as checkpoint

    whole = run(tmp_path / "whole", 5, resume=False)
    saves = 0
    real = checkpoint.save

    class StoppedError(Exception):
        pass

    for stop_after in range(1, 13):
        saves = 0

        def save(*arguments: object, limit: int = stop_after) -> None:
            nonlocal saves
            saves += 1
            real(*arguments)  # type: ignore[arg-type]
            if saves == limit:
                raise StoppedError

        path = tmp_path / f"stopped-{stop_after}"
        monkeypatch.setattr(checkpoint, "save", save)
        with pytest.raises(StoppedError):
            run(path, 5, resume=False)
        monkeypatch.setattr(checkpoint, "save", real)
        resumed = run(path, 5, resume=True)
        assert resumed.keys() == whole.keys()
        for name in whole:
            ours, theirs = resumed[name].state_dict(), whole[name].state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), (stop_after, name)


def test_shared_points_have_other_counts_after_resuming_too(tmp_path: Path) -> None:
    models = run(tmp_path / "c", 3, resume=False)
    counts = [m.learned["points"].numel() for m in models["student"].modules() if isinstance(m, WeightTransform)]
    assert sum(counts) == 12
    assert counts != [6, 6]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    run(path, 3, resume=False)
    with pytest.raises(CheckpointError, match=r"seed 1.*got seed 0"):
        run(path, 3, resume=True, seed=1)


def test_shared_tensors_are_saved_once_and_stay_shared(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from bitstill.train import checkpoint
    from bitstill.train.checkpoint import Position

    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model, path = tied(), tmp_path / "c"
    checkpoint.save(path, {"a": model, "b": model}, None, Position(), {})
    assert sorted(load_file(path)) == ["models/a/0.bias", "models/a/0.weight", "models/a/1.bias"]
    other = tied()
    Checkpoint(path, {}).restore_models({"a": other, "b": other})
    assert other[0].weight is other[1].weight
    assert torch.equal(other[0].weight, model[0].weight)
