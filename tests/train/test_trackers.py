"""Logged values reach the tracker that Accelerate knows by that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitstill.losses.logits import CrossEntropy
from bitstill.train.loop import train
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term

from .tiny import network, task


def test_tensorboard_holds_the_same_figures_as_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    stage = Stage("fit", terms=(Term(CrossEntropy()),), steps=6, batch_size=32)
    settings = Settings(progress=False, device="cpu", trackers=("tensorboard",))
    history = train([stage], {"student": network(1)}, task(), settings)
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    found = events.EventAccumulator(str(folder))
    found.Reload()
    wanted = [(entry["step"], pytest.approx(entry["loss"], rel=1e-6)) for entry in history if "loss" in entry]
    assert [(event.step, event.value) for event in found.Scalars("fit/loss")] == wanted
