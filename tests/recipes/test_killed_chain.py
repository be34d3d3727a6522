"""BinaryBERT's whole chain, including variants and general distillation, killed with SIGKILL: the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hf import tiny

REPOSITORY = Path(__file__).parents[2]

# As in a user's shell, but in one process: variants, then the chain. It kills itself at the n-th flush of a file not yet
# renamed, and prints the number of flushes.
CHILD = """
import os, signal, sys
from pathlib import Path
import datasets
import bitstill
from bitstill.cli.main import app
from bitstill.data import augmentation, corpus

folder, out, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
datasets.config.HF_DATASETS_CACHE = folder / "cache"
augmentation.SHARD, corpus.DOCUMENTS = 16, 40
calls, real = 0, os.fsync

def counting(descriptor):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(descriptor)

os.fsync = counting
data = ["--data", str(folder / "data"), "--text-column", "text"]
bert = str(folder / "bert")
quiet = ["--set", "settings.progress=false", "--set", "settings.device=cpu"]
settings = {
    "general.steps": 3, "general.batch_size": 8, "general.corpus.length": 16, "layers": 2, "validations": 2, "batch_size": 8,
    "teacher_epochs": 0.4,
}
augment = ["augment", "--task", "text", "--model", bert, *data, "--method", "neighbours", "--variants", "2"]
chain = ["compress", "--recipe", "binarybert", "--task", "text", "--model", bert, *data, "--max-length", "32", "--steps", "2"]
chain += ["--checkpoint-every", "1", "--corpus", str(folder / "text.txt"), "--augmented", f"{out}-variants", "--resume", *quiet]
for name, value in settings.items():
    chain += ["--set", f"{name}={value}"]
app([*augment, "--out", f"{out}-variants"], standalone_mode=False)
app([*chain, "--out", out], standalone_mode=False)
print(f"flushes: {calls}")
"""


def child(folder: Path, out: Path, number: int) -> int | None:
    """Number of flushes, or None if it was killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CHILD, str(folder), str(out), str(number)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return int(done.stdout.rpartition("flushes: ")[2]) if done.returncode == 0 else None


def contents(out: Path) -> dict[str, bytes]:
    found = {name: out.with_name(out.name + name) for name in ("", ".tokens", "-variants")}
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name, folder in found.items()
        for path in sorted(folder.iterdir())
        if path.name != "report.json"
        and path.suffix in (".safetensors", ".bin", ".jsonl", ".json")
        and path.name != "config.json"
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models and data")
    tiny.saved(place / "bert", "bert")
    tiny.write_csv(place / "data")
    (place / "text.txt").write_text("\n\n".join(tiny.sentences(120)[0]))
    return place


@pytest.mark.slow
def test_the_whole_chain_killed_in_every_part_ends_in_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    flushes = child(folder, tmp_path / "whole", 0)
    assert flushes is not None
    wanted, out = contents(tmp_path / "whole"), tmp_path / "killed"
    deaths = 0
    # Finished work is not repeated, so each of these kills comes later in the chain than the one before.
    for number in (2, 6, 9, 9, 9, 9):
        deaths += child(folder, out, number) is None
        assert not (out / "config.json").exists() or not deaths, "nothing half-written is delivered"
    assert child(folder, out, 0) is not None and deaths >= 5
    assert contents(out) == wanted
    assert not list(tmp_path.glob(".killed*checkpoint*")), "a finished run leaves no checkpoint"
