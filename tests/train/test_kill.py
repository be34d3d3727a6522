"""A run killed with SIGKILL, wherever it is, continues to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bitstill

# Runs the library as a user does, and kills itself: at the n-th flush of a file that is not renamed yet, at the n-th rename, or
# after some milliseconds of training.
CHILD = """
import os, random, signal, sys, threading
import bitstill, bitstill.train.loop as loop

out, kind, number = sys.argv[1], sys.argv[2], float(sys.argv[3])
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counting(real):
    def call(*arguments):
        global calls
        calls += 1
        if calls == number:
            die()
        return real(*arguments)
    return call

if kind in ("fsync", "replace"):
    setattr(os, kind, counting(getattr(os, kind)))
if kind == "timer":
    real = loop.train_stage
    def run(*arguments):
        threading.Timer(number, die).start()
        return real(*arguments)
    loop.train_stage = run

recipe = bitstill.recipes.QuantizedDistillation(bits=2, steps=24, teacher_epochs=2, batch_size=100)
models = {"teacher": "digits-teacher", "student": "digits-student"}
settings = bitstill.train.Settings(progress=False, device="cpu", checkpoint_every=2)
bitstill.compress(recipe, "digits", models, out=out, settings=settings, resume=True)
"""


def child(out: Path, kind: str, number: float) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(out), kind, str(number)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "artifact"
    assert child(out, "never", 0) == 0
    return (out / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, uninterrupted: bytes) -> None:
    """While a checkpoint is written, between stages, while training, while the artifact is written: one run, many deaths."""
    out = tmp_path / "artifact"
    chance = random.Random(20181)
    plan = [
        ("fsync", chance.randint(1, 6)),
        ("replace", chance.randint(2, 8)),
        ("timer", chance.uniform(0.01, 0.2)),
        ("fsync", chance.randint(3, 9)),
    ]
    deaths = 0
    for kind, number in plan:
        died = child(out, kind, number) != 0
        deaths += died
        if not died:
            break
        assert not out.exists(), "nothing half-written is ever delivered"
    if not out.exists():
        assert child(out, "never", 0) == 0
    assert deaths >= 3
    assert (out / "model.safetensors").read_bytes() == uninterrupted
    assert not list(tmp_path.glob(".artifact.checkpoint*")), "a finished run leaves no checkpoint"


@pytest.mark.slow
def test_killed_while_replacing_an_older_artifact(tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "artifact"
    recipe = bitstill.recipes.QuantizedDistillation(bits=1, steps=1, kd_weight=0)
    quiet = bitstill.train.Settings(progress=False, device="cpu")
    bitstill.compress(recipe, "digits", {"student": "digits-student"}, out=out, settings=quiet)
    older = {path.name: path.read_bytes() for path in out.iterdir()}
    # The whole run needs about 30 flushes; the last ones belong to the artifact.
    assert child(out, "fsync", 25) != 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == older
    assert child(out, "never", 0) == 0
    assert (out / "model.safetensors").read_bytes() == uninterrupted
