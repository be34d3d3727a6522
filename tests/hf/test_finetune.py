"""A teacher fine-tuned from a pretrained body: an ordinary Hugging Face folder with an accurate report."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import bitstill
from bitstill.data import TextOptions
from bitstill.data.task import evaluate
from bitstill.deliver.load_task import task_for
from bitstill.errors import BitstillError, CheckpointError, DataError, SpecError
from bitstill.hf.pretrained import load_pretrained
from bitstill.recipes import XTC, FineTuning
from bitstill.run.finetune import finetune
from bitstill.train.step import TrainingStep

from . import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")
TEXT = TextOptions(max_length=tiny.LIMIT)
RECIPE = FineTuning(steps=6, batch_size=8, lr=5e-3, validations=3)


def run(source, out, data, recipe=RECIPE, settings=tiny.QUIET, **more):
    return finetune(str(source), "text", out, recipe=recipe, settings=settings, data=data, **{"text": TEXT, **more})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory, saved, data):
    """Folder and report of a run."""
    out = tmp_path_factory.mktemp("finetuned") / "teacher"
    return out, run(saved("bert", body=True), out, data)


def test_the_folder_is_an_ordinary_one_and_nothing_lies_beside_it(made):
    out, report = made
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "report.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert [path.name for path in out.parent.iterdir()] == ["teacher"]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and "quantization_config" not in config
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))


def test_the_report_says_what_the_folder_gives(made, data):
    out, report = made
    task = task_for("text", {"teacher": out}, data, TEXT)
    loaded = load_pretrained(str(out), task, "teacher")
    assert loaded.new == () == loaded.unused
    delivered = report["delivered"]
    assert delivered["test"] == evaluate(loaded.model, task, task.test)
    assert delivered["validation"] == evaluate(loaded.model, task, task.validation)
    assert (delivered["metric"], delivered["samples"]) == ("accuracy", 10)
    assert report["task"] == "text" and report["recipe"]["steps"] == 6 and report["wall_seconds"] > 0


def test_the_report_says_what_was_new(made, saved):
    note = made[1]["models"]["student"]
    assert note["source"] == str(saved("bert", body=True)) and note["new"] == ["classifier.bias", "classifier.weight"]


def test_the_body_learned_too(made):
    out, _ = made
    before, after = tiny.model("bert").state_dict(), load_state(out)
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert "classifier.weight" in moved and "bert.encoder.layer.0.attention.self.query.weight" in moved


def load_state(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def student(tmp_path_factory, made, data):
    """An artifact distilled from that teacher, and its report."""
    out = tmp_path_factory.mktemp("student") / "student"
    recipe = XTC(steps=1, validations=1, batch_size=4)
    result = bitstill.compress(recipe, "text", {"teacher": made[0]}, out=out, settings=tiny.QUIET, data=data, text=TEXT)
    return out, result.report


def test_it_can_be_the_teacher_of_a_compressed_student(made, student):
    _, report = student
    assert {entry["stage"] for entry in report["history"]} == {"binary"}
    assert report["teacher"]["test"] == made[1]["delivered"]["test"]


CHILD = """
import csv, json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

def measure(folder):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer, right = AutoTokenizer.from_pretrained(folder), 0
    for row in rows:
        with torch.no_grad():
            label = model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax().item()
        right += model.config.id2label[label] == row["label"]
    return 100 * right / len(rows)

teacher, student, file = sys.argv[1:]
rows = list(csv.DictReader(open(file)))
first = measure(teacher)
assert "bitstill" not in sys.modules
import bitstill.hf
print(json.dumps([first, measure(student)]))
"""


def test_transformers_without_bitstill_reads_it_and_with_bitstill_reads_its_student(made, student, data):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", CHILD, made[0], student[0], data / "test.csv"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([made[1]["delivered"]["test"], student[1]["delivered"]["test"]])


def test_the_same_run_gives_the_same_bytes(made, saved, data, tmp_path):
    run(saved("bert", body=True), tmp_path / "again", data)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made[0] / name).read_bytes(), name


def test_an_empty_folder_may_be_there_already(saved, data, tmp_path):
    (tmp_path / "out").mkdir()
    run(saved("bert"), tmp_path / "out", data, FineTuning(steps=1, validations=1))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_values_are_learned_by_a_single_output(saved, tmp_path):
    folder = tiny.write_csv(tmp_path / "data", labels=(0.5, 4.0))
    report = run(saved("bert", body=True), tmp_path / "out", folder, FineTuning(steps=2, batch_size=8, validations=1))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "LABEL_0"}
    assert report["delivered"]["metric"] == "mean of Pearson and Spearman"


def test_a_folder_with_something_in_it_is_left_alone(saved, data, tmp_path):
    for name, file in (("model", "config.json"), ("notes", "todo.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        with pytest.raises(SpecError, match=rf"{name}: wanted a new or an empty folder, got something else"):
            run(saved("bert"), tmp_path / name, data)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SpecError, match="file: wanted a new or an empty folder"):
        run(saved("bert"), tmp_path / "file", data)
    found = contents(tmp_path)
    assert found == {"model/config.json": b"{}", "notes/todo.txt": b"{}", "file": b"precious"}


def test_what_cannot_work_writes_nothing(saved, data, tmp_path):
    cases = [
        ({"source": tmp_path / "nowhere"}, DataError),
        ({"source": saved("bert", num_labels=3)}, DataError),
        ({"source": saved("vit")}, DataError),
        ({"source": saved("bert"), "data": tmp_path / "no-data"}, DataError),
        ({"source": saved("bert"), "text": TextOptions(label="lable")}, DataError),
        ({"source": saved("bert"), "text": TextOptions(max_length=5)}, DataError),
        ({"source": saved("bert"), "text": TextOptions(max_length=33)}, SpecError),
    ]
    for case, kind in cases:
        with pytest.raises(kind):
            run(case.pop("source"), tmp_path / "out", **{"data": data, **case})
        assert not list(tmp_path.iterdir()), case


def never_trains(monkeypatch):
    monkeypatch.setattr("bitstill.run.driver.train", lambda *_, **__: pytest.fail("it trained"))


def test_a_network_that_is_no_folder_of_transformers_is_refused_before_it_trains(tmp_path, monkeypatch):
    never_trains(monkeypatch)
    with pytest.raises(BitstillError):
        finetune("digits-student", "digits", tmp_path / "out", recipe=FineTuning(steps=1), settings=tiny.QUIET)
    assert not list(tmp_path.iterdir())


def test_pictures_are_learned_as_well(tmp_path, saved):
    source, out = str(saved("vit", num_labels=10)), tmp_path / "out"
    report = finetune(source, "digits", out, recipe=FineTuning(steps=1, validations=1), settings=tiny.QUIET)
    assert (out / "model.safetensors").is_file() and report["delivered"]["metric"] == "accuracy"


def interrupted(monkeypatch, step):
    """Interrupt the n-th training step, as Ctrl-C does."""
    real, calls = TrainingStep.forward, []

    def forward(self, batch, targets, progress, probe):
        if self.training and len(calls) == step:
            raise KeyboardInterrupt
        calls.append(None)
        return real(self, batch, targets, progress, probe)

    monkeypatch.setattr(TrainingStep, "forward", forward)


def test_a_stopped_run_continues_to_the_same_bytes(made, saved, data, tmp_path, monkeypatch):
    settings = bitstill.train.Settings(progress=False, device="cpu", teacher_precision="float32", checkpoint_every=2)
    with monkeypatch.context() as patch:
        interrupted(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(saved("bert", body=True), tmp_path / "out", data, settings=settings)
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()), "a checkpoint is there"
    with pytest.raises(CheckpointError):
        run(saved("bert", body=True), tmp_path / "out", data, settings=settings)
    run(saved("bert", body=True), tmp_path / "out", data, settings=settings, resume=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (made[0] / "model.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_it_learns_what_is_easy(saved, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [f"{word},{label}" for label, words in (("yes", tiny.POSITIVE), ("no", tiny.NEGATIVE)) for word in words]
    for part in ("train", "validation", "test"):
        (folder / f"{part}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    recipe = FineTuning(steps=120, batch_size=12, lr=3e-3, validations=12)
    report = run(saved("bert", body=True), tmp_path / "out", folder, recipe)
    assert report["delivered"]["test"] > 60
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
