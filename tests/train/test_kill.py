"""A run killed with SIGKILL at any point resumes to the same bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bitstill

# Runs the library as a user would, once per line of standard input, in a fork that kills itself: at the n-th flush of a
# file not yet renamed, at the n-th rename, or after some seconds of training. Prints the exit status.
RUNS = """
import os, signal, sys, threading, traceback
import bitstill, bitstill.train.loop as loop
bitstill.compress, bitstill.recipes.QuantizedDistillation, bitstill.train.Settings  # imported before the first fork

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(real, number):
    calls = 0
    def call(*arguments):
        nonlocal calls
        calls += 1
        if calls == number:
            die()
        return real(*arguments)
    return call

def run(out, kind, number, resume):
    if kind in ("fsync", "replace"):
        setattr(os, kind, dying(getattr(os, kind), number))
    if kind == "timer":
        real = loop.train_stage
        def timed(*arguments):
            threading.Timer(number, die).start()
            return real(*arguments)
        loop.train_stage = timed
    recipe = bitstill.recipes.QuantizedDistillation(bits=2, steps=24, teacher_epochs=2, batch_size=100)
    models = {"teacher": "digits-teacher", "student": "digits-student"}
    settings = bitstill.train.Settings(progress=False, device="cpu", checkpoint_every=2)
    bitstill.compress(recipe, "digits", models, out=out, settings=settings, resume=resume, force=True)

for line in sys.stdin:
    out, kind, number, resume = line.rstrip().split("\\t")
    child = os.fork()
    if not child:
        status = 1
        try:
            run(out, kind, float(number), resume == "True")
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def died() -> Iterator[Callable[..., bool]]:
    """Run until the `number`-th event of `kind`, or to the end; whether it was killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", RUNS], text=True, **pipes) as process:

        def run(out: Path, kind: str = "never", number: float = 0, resume: bool = True) -> bool:
            process.stdin.write(f"{out}\t{kind}\t{number}\t{resume}\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            return status != 0

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def uninterrupted(died: Callable[..., bool], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "artifact"
    assert not died(out)
    return (out / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_again_and_again(died: Callable[..., bool], tmp_path: Path, uninterrupted: bytes) -> None:
    """While writing a checkpoint, between stages, while training, while writing the artifact: one run, many kills."""
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
        killed = died(out, kind, number)
        deaths += killed
        if not killed:
            break
        assert not out.exists(), "nothing half-written is ever delivered"
    if not out.exists():
        assert not died(out)
    assert deaths >= 3
    assert (out / "model.safetensors").read_bytes() == uninterrupted
    assert not list(tmp_path.glob(".artifact.checkpoint*")), "a finished run leaves no checkpoint"


def test_killed_while_replacing_an_older_artifact(died: Callable[..., bool], tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "artifact"
    recipe = bitstill.recipes.QuantizedDistillation(bits=1, steps=1, kd_weight=0)
    quiet = bitstill.train.Settings(progress=False, device="cpu")
    bitstill.compress(recipe, "digits", {"student": "digits-student"}, out=out, settings=quiet)
    older = {path.name: path.read_bytes() for path in out.iterdir()}
    # The whole run needs about 30 flushes; the last ones belong to the artifact.
    assert died(out, "fsync", 25, resume=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == older
    assert not died(out)
    assert (out / "model.safetensors").read_bytes() == uninterrupted
