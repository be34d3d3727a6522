"""Two processes with the same global batch train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]

CHILD = """
import os, sys
import torch
from safetensors.torch import save_file
from torch import nn
import bitstill
from bitstill.losses.logits import KL, CrossEntropy
from bitstill.quant.rules import Compression
from bitstill.recipes.recipe import RunContext
from bitstill.train.actions import Compress
from bitstill.train.loop import train
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term
from tests.train.tiny import network, task

out, accumulate = sys.argv[1], int(sys.argv[2])
teacher = network(1, 12)
student = network(2)
student.insert(1, nn.BatchNorm1d(8))
rule = Compression(weight=bitstill.quant.Uniform(bits=8, granularity=bitstill.quant.PerChannel()))
stage = Stage(
    "s", terms=(Term(KL(), teacher="teacher"), Term(CrossEntropy(), weight=0.5)), steps=12, batch_size=24,
    begin=(Compress("student", rule),),
)
settings = Settings(progress=False, device="cpu", teacher_precision="float32", accumulate=accumulate)
train([stage], {"teacher": teacher, "student": student}, task(augmented=True), settings)
# Two views over shared weights, and masks that move.
pruned = {"student": network(3)}
pruned["student"].insert(1, nn.BatchNorm1d(8))
pqk = bitstill.recipes.PQK(
    bits=8, skip="none", sparsity=0.4, every=2, epochs=1, warmup_epochs=1, mutual_epochs=1, batch_size=24, lr=0.02
)
train(pqk.stages(RunContext(task().objective)), pruned, task(augmented=True), settings)
if os.environ.get("RANK", "0") == "0":
    states = {"student": student, "pruned": pruned["student"], "view": pruned["teacher"]}
    save_file({f"{name}.{key}": t for name, model in states.items() for key, t in model.state_dict().items()}, out)
"""


def launch(source: str, script: Path, processes: int, *arguments: str) -> None:
    script.write_text(source)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *launcher, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def state(out: Path, processes: int, accumulate: int) -> dict[str, torch.Tensor]:
    launch(CHILD, out.with_suffix(".py"), processes, str(out), str(accumulate))
    return load_file(out)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return state(tmp_path_factory.mktemp("one") / "state.safetensors", 1, 1)


def test_two_gloo_processes_equal_one(tmp_path: Path, one_process: dict[str, torch.Tensor]) -> None:
    """Weights and batch norm's running statistics, within 1e-4: sums are taken in another order."""
    two = state(tmp_path / "state.safetensors", 2, 1)
    assert two.keys() == one_process.keys()
    for name, value in one_process.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4, msg=name)


GENERAL = """
import sys
from pathlib import Path
import datasets
import bitstill
from bitstill.recipes.general_distillation import GeneralDistillation
from bitstill.data.corpus import Corpus
from tests.hf import tiny

folder = Path(sys.argv[1])
datasets.config.HF_DATASETS_CACHE = folder / "cache"
recipe = GeneralDistillation(layers=2, steps=4, batch_size=8, validations=2)
corpus = Corpus(str(folder / "text.txt"), length=16)
bitstill.distill(str(folder / "teacher"), corpus, folder / sys.argv[2], recipe=recipe, settings=tiny.QUIET)
"""


@pytest.mark.slow
def test_two_processes_distil_an_encoder_from_a_new_corpus(tmp_path: Path) -> None:
    """The main process tokenizes while the other waits; both must begin a new run."""
    pytest.importorskip("transformers")
    from tests.hf import tiny

    tiny.saved(tmp_path / "teacher", "bert")
    (tmp_path / "text.txt").write_text("\n\n".join(tiny.sentences(120)[0]))
    for processes, out in ((2, "two"), (1, "one")):
        launch(GENERAL, tmp_path / f"{out}.py", processes, str(tmp_path), out)
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4, msg=name)
