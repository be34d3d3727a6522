"""PQK from its first step to its artifact, on a few hundred digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import bitstill
import bitstill.train.checkpoint as checkpoint
import bitstill.train.loop as loop
from bitstill.data.objectives import Classification
from bitstill.errors import SpecError
from bitstill.losses.logits import CrossEntropy
from bitstill.recipes import PQK
from bitstill.recipes.recipe import RunContext
from bitstill.schedules import Cubic, Linear
from bitstill.train.pruning import Pruning
from bitstill.train.stage import Stage, Term

from .digits import QUIET, conv_net, small_resnet, task

CLASSES = Classification(10)
SHORT = PQK(epochs=2, warmup_epochs=1, mutual_epochs=1, batch_size=32, every=3, validations=1)


def zeros(archive: Any) -> tuple[int, int]:
    weights = [archive.weight(name) for name in archive.layers]
    return sum(int((w == 0).sum()) for w in weights), sum(w.size for w in weights)


@pytest.mark.parametrize(("bits", "student"), [(2, conv_net), (4, small_resnet), (1, conv_net), ("ternary", small_resnet)])
def test_a_run_delivers_the_bits_and_the_zeros_that_were_asked_for(tmp_path, bits, student):
    recipe = replace(SHORT, bits=bits, sparsity=0.7)
    result = bitstill.compress(recipe, task(), {"student": student()}, out=tmp_path / "out", settings=QUIET)
    archive = bitstill.read(tmp_path / "out")
    found, total = zeros(archive)
    if bits == "ternary":  # the quantizer's own threshold adds zeros
        assert found >= round(0.7 * total)
    else:
        assert found == round(0.7 * total)
    for layer in archive.layers.values():
        assert len(np.unique(archive.codes(layer))) <= {1: 2, 2: 4, 4: 16, "ternary": 3}[bits]
    size = result.report["size"]
    assert 0 < size["stored_bits"] < (4 if bits == 4 else 3)
    assert "classifier" not in archive.layers


def test_each_layer_has_its_share_where_ranking_is_by_layer(tmp_path):
    recipe = replace(SHORT, scope="layer", sparsity=0.5)
    bitstill.compress(recipe, task(), {"student": conv_net()}, out=tmp_path / "out", settings=QUIET)
    archive = bitstill.read(tmp_path / "out")
    for name, layer in archive.layers.items():
        assert int((archive.weight(name) == 0).sum()) == round(0.5 * layer.weights)


def test_two_of_four_in_every_group(tmp_path):
    recipe = replace(SHORT, scope="layer", sparsity=0.5, within=4)
    bitstill.compress(recipe, task(), {"student": conv_net()}, out=tmp_path / "out", settings=QUIET)
    archive = bitstill.read(tmp_path / "out")
    for name in archive.layers:
        assert (np.count_nonzero(archive.weight(name).reshape(-1, 4), axis=1) == 2).all()


def test_the_stages_are_those_of_the_paper():
    first, warm, mutual = PQK().stages(RunContext(CLASSES))
    assert first.train == ("student",) and [t.name for t in first.terms] == ["student/CrossEntropy"]
    assert first.pruning is not None and first.pruning.sparsity == Cubic(0.0, 0.8, until=0.6)
    assert warm.train == ("teacher",) and [t.name for t in warm.terms] == ["teacher/CrossEntropy"]
    assert mutual.train == ("student", "teacher") and mutual.keep == "best" and mutual.pruning is None
    assert {t.name for t in mutual.terms} == {
        "student/CrossEntropy", "student/KL<-teacher", "teacher/CrossEntropy", "teacher/KL<-student",
    }  # fmt: skip


def test_a_float_stretch_comes_before_masks_and_quantizer(tmp_path):
    dense, first, *_ = PQK(float_epochs=3, lr=0.4).stages(RunContext(CLASSES))
    assert (dense.name, dense.epochs, dense.begin, dense.pruning) == ("float", 3, (), None)
    assert first.begin and first == PQK(lr=0.4).stages(RunContext(CLASSES))[0]
    recipe = replace(SHORT, float_epochs=1, bits=2, sparsity=0.7)
    result = bitstill.compress(recipe, task(), {"student": conv_net()}, out=tmp_path / "out", settings=QUIET)
    found, total = zeros(bitstill.read(tmp_path / "out"))
    assert found == round(0.7 * total)
    assert result.report["history"][0]["stage"] == "float"


def test_one_cosine_runs_through_phase_1_and_mutual_learning_unless_that_has_a_rate_of_its_own():
    def rates(recipe):
        return [stage.optimizer.lr for stage in recipe.stages(RunContext(CLASSES))]

    first, warm, mutual = rates(PQK(lr=0.4, epochs=1, warmup_epochs=1, mutual_epochs=1))
    assert first(1.0) == mutual(0.0) == pytest.approx(0.2) and mutual(1.0) == 0.0 and warm(1.0) == 0.0
    first, _, mutual = rates(PQK(lr=0.4, mutual_lr=0.1))
    assert first(1.0) == 0.0 and max(mutual(n / 100) for n in range(100)) == pytest.approx(0.1)
    (alone,) = rates(PQK(lr=0.4, warmup_epochs=0, mutual_epochs=0))
    assert alone(1.0) == 0.0


def test_phase_1_alone_has_no_dense_view():
    stages = PQK(warmup_epochs=0, mutual_epochs=0).stages(RunContext(CLASSES))
    assert [stage.name for stage in stages] == ["prune and quantize"]


@pytest.mark.parametrize(
    ("schedule", "halfway", "wanted"),
    [("cubic", 0.3, 0.8 * (1 - 0.5**3)), ("linear", 0.3, 0.4), ("one-shot", 0.3, 0.0), ("one-shot", 0.6, 0.8)],
)
def test_schedules_of_the_sparsity(schedule, halfway, wanted):
    (first, *_) = PQK(schedule=schedule).stages(RunContext(CLASSES))
    assert first.pruning is not None and isinstance(first.pruning.sparsity, (Cubic, Linear))
    assert first.pruning.sparsity(halfway) == pytest.approx(wanted)


def test_the_pruned_student_learns_and_the_teacher_gets_better_than_a_guess(tmp_path):
    recipe = PQK(epochs=20, warmup_epochs=4, mutual_epochs=12, batch_size=32, sparsity=0.5, validations=4)
    result = bitstill.compress(recipe, task(), {"student": conv_net()}, out=tmp_path / "out", settings=QUIET)
    assert result.report["delivered"]["test"] > 75
    warm = [e["validation"] for e in result.report["history"] if e["stage"].startswith("warm-up") and "validation" in e]
    assert warm[-1] > 60


@pytest.mark.parametrize("place", [6, 11, 18], ids=["late in first", "warm-up", "late in mutual"])
def test_a_run_killed_in_any_stage_and_resumed_delivers_the_same_bytes(tmp_path, monkeypatch, place):
    recipe = PQK(
        epochs=0.75, warmup_epochs=0.375, mutual_epochs=0.75, batch_size=32, every=2, validations=2, sparsity=0.6, ramp=1.0
    )
    settings = replace(QUIET, checkpoint_every=1)

    def run(folder, resume):
        return bitstill.compress(recipe, task(), {"student": conv_net()}, settings=settings, out=folder / "out", resume=resume)

    run(tmp_path / "whole", False)
    wanted = (tmp_path / "whole" / "out" / "model.safetensors").read_bytes()
    save, calls = checkpoint.save, 0

    class StoppedError(Exception):
        pass

    def stopping(*arguments):
        nonlocal calls
        calls += 1
        save(*arguments)
        if calls == place:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping)
        with pytest.raises(StoppedError):
            run(tmp_path / "killed", False)
    run(tmp_path / "killed", True)
    assert (tmp_path / "killed" / "out" / "model.safetensors").read_bytes() == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"within": 3, "scope": "layer"}, "a whole number of zeros"),
        ({"warmup_epochs": 0}, "both stages of phase 2, or neither"),
        ({"skip": "paper"}, "skip 'roles' or 'none'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(SpecError, match=message):
        PQK(**options)


def test_a_layer_that_n_of_m_does_not_divide_is_refused_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_stage", lambda *_: pytest.fail("it trained"))
    recipe = replace(SHORT, scope="layer", sparsity=0.2, within=5)
    with pytest.raises(SpecError, match="rows that 5 divides"):
        bitstill.compress(recipe, task(), {"student": conv_net()}, out=tmp_path / "out", settings=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_model_without_norms_is_refused_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_stage", lambda *_: pytest.fail("it trained"))
    bare = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 20))
    bare.extend([torch.nn.ReLU(), torch.nn.Linear(20, 10)])
    with pytest.raises(bitstill.BitstillError, match="a model with norm layers"):
        bitstill.compress(SHORT, task(), {"student": bare}, out=tmp_path / "out", settings=QUIET)


def test_a_stage_prunes_whom_it_trains():
    with pytest.raises(SpecError, match="a trained model to prune"):
        Stage("odd", train=("teacher",), terms=(Term(CrossEntropy(), student="teacher"),), steps=1, pruning=Pruning(0.5))
