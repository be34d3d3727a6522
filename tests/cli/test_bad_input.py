"""Bad input: a non-zero status, one clear message, no traceback, and an existing artifact untouched byte for byte."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys

import pytest
import torch

import bitstill
from bitstill.artifact import files
from bitstill.artifact.files import write_file
from bitstill.recipes import PostTraining
from bitstill.train.settings import Settings
from tests.signing import edit_signed

QD = ("compress", "--recipe", "quantized-distillation", "--task", "digits")
# The cheapest run: one step of a student on its own.
PT = (*QD, "--steps", "1", "--set", "kd_weight=0", "--set", "settings.progress=false", "--model", "digits-student")

OLDER = ("--force", "--out")
"""Followed by the folder of an artifact that would be replaced."""


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def beside(folder):
    return sorted(path.name for path in folder.parent.iterdir())


def refused(run, message):
    assert run.status == 1 and run.out == ""
    assert "Traceback" not in run.err and run.err.count("error:") == 1, run.err
    lines = [line for line in run.err.splitlines() if not line.startswith("warning:")]  # about useless results
    flat = " ".join(" ".join(lines).split())
    assert re.search(message, flat), flat
    assert flat.startswith("error:") and flat.endswith((".", "?")), "one message and nothing else"


BAD_FLAGS = {
    "recipe": (("--recipe", "quantised-distillation"), "recipe: wanted a known recipe.*Did you mean 'quantized-distillation'"),
    "task": (("--task", "digit"), "task: wanted a known task.*Did you mean 'digits'"),
    "student": (("--student", "digits-studnet"), r"student: wanted a known model, or.*Did you mean 'digits-student'\?"),
    "teacher": (("--teacher", "digits_teacher"), r"teacher: wanted a known model, or.*Did you mean 'digits-teacher'\?"),
    "option": (("--set", "kd_wieght=0.5"), r"got 'kd_wieght'. Did you mean 'kd_weight'\?"),
    "setting": (("--set", "settings.sede=1"), r"run.settings: wanted a known setting, got 'sede'. Did you mean 'seed'\?"),
    "no assignment": (("--set", "kd_weight"), "--set: wanted KEY=VALUE, got 'kd_weight'"),
    "no key": (("--set", "=3"), "--set: wanted KEY=VALUE"),
    "broken value": (("--set", "pairs=[1"), "--set pairs: wanted valid YAML"),
    "below a number": (("--set", "lr=1", "--set", "lr.start=2"), "options.lr.start: wanted a setting with fields"),
    "text for a number": (("--set", "lr=fast"), r"lr: wanted a value of type float, got 'fast' \(str\)"),
    "a fraction for a whole": (("--set", "batch_size=3.5"), r"batch_size: wanted a value of type int, got 3.5"),
    "a flag for a number": (("--set", "batch_size=true"), "batch_size: wanted a value of type int, got True"),
    "bits": (("--bits", "9"), "options.bits: wanted bits from 1 to 8 or 'ternary', got 9"),
    "bits in words": (("--bits", "two"), "bits: wanted .*'ternary'.*got 'two'"),
    "kind": (("--set", "granularity={kind: PerGruop, size: 8}"), r"granularity: wanted a known kind.*Did you mean 'PerGroup'"),
    "skip": (("--set", "skip=all"), "skip: wanted one of 'roles', 'paper', 'none', got 'all'"),
    "precision": (("--precision", "float16"), "precision: wanted one of 'float32', 'bf16'"),
    "epochs": (("--epochs", "0"), "wanted a duration above 0, got 0.0"),
    "endless": (("--epochs", "inf"), r"options.epochs: wanted epochs from 0 to 1,000,000, got inf\. The default is 30\."),
    "two durations": (("--epochs", "1", "--steps", "1"), "one of --epochs and --steps, got both"),
    "rate": (("--set", "lr=-1"), "options.lr: wanted lr above 0, got -1"),
    "checkpoints": (
        ("--checkpoint-every", "0"),
        "settings.checkpoint_every: wanted checkpoint_every from 1 to .*, got 0",
    ),
    "tracker": (("--set", "settings.trackers=[tensorbord]"), r"settings.trackers: .*Did you mean 'tensorboard'\?"),
    "corpus": (("--corpus", "wiki.txt"), "a known setting, got 'general'"),
    "data": (("--data", "here"), "digits: wanted no --data, got here"),
    "pair": (("--set", "pairs=[{student: features.0, teacher: feature.0}]"), r"got 'feature.0'. Did you mean 'features.0'\?"),
    "classes": (("--set", "pairs=[{student: features.0}]"), "wanted the setting 'teacher', got nothing"),
    "pictures": (("--student", "resnet-20"), r"student: wanted a model that reads digits \(image \(1, 8, 8\)\)"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flags(cli, older, teacher, name):
    flags, message = BAD_FLAGS[name]
    before, around = contents(older), beside(older)
    run = cli(
        *QD,
        "--teacher",
        teacher,
        "--student",
        "digits-student",
        "--set",
        "settings.progress=false",
        *flags,
        "--out",
        older,
        "--force",
    )
    refused(run, message)
    assert contents(older) == before and beside(older) == around


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("--recipe", r"wanted a recipe, got none. Add --recipe"),
        ("--task", r"wanted a task, got none. Add --task"),
        ("--student", "a model for the role 'student'"),
        ("--teacher", "a model for the role 'teacher'"),
        ("--out", "wanted a folder to deliver to, got none. Add --out DIR"),
    ],
)
def test_what_is_missing_is_named(cli, tmp_path, missing, message):
    flags = {
        "--recipe": "quantized-distillation", "--task": "digits", "--student": "digits-student", "--teacher": "digits-teacher",
        "--out": tmp_path / "new",
    }  # fmt: skip
    del flags[missing]
    refused(cli("compress", *(item for pair in flags.items() for item in pair)), message)
    assert not list(tmp_path.iterdir())


YAMLS = {
    "broken": ("recipe: [", "wanted valid YAML"),
    "a list": ("- recipe", "wanted a YAML mapping, got list"),
    "empty": ("", "wanted a YAML mapping, got NoneType"),
    "text": ("quantized-distillation", "wanted a YAML mapping, got str"),
    "unknown key": ("{recipe: post-training, task: digits, studnet: x}", r"got 'studnet'. Did you mean 'student'\?"),
    "unknown option": ("{recipe: post-training, task: digits, options: {bit: 2}}", r"got 'bit'. Did you mean 'bits'\?"),
    "unknown recipe": ("{recipe: posttraining, task: digits}", r"Did you mean 'post-training'\?"),
    "a number for text": ("{recipe: post-training, task: 3}", r"run.task: wanted a value of type str, got 3 \(int\)"),
    "text for a mapping": (
        "{recipe: post-training, task: digits, settings: fast}",
        "wanted the settings of Settings, got 'fast'",
    ),
    "text for a number": (
        "{recipe: post-training, task: digits, settings: {seed: one}}",
        "run.settings.seed: wanted a value of type int",
    ),
    "options": ("{recipe: post-training, task: digits, options: 3}", "wanted the settings of PostTraining, got 3"),
    "no task": ("{recipe: post-training}", "wanted a task, got none"),
    "not text": (
        "{recipe: post-training, task: digits, model: digits-student, data: 3}",
        "run.data: wanted a value of type str",
    ),
    "python": ("recipe: !!python/object/apply:os.system ['true']", "wanted valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", YAMLS)
def test_bad_run_files(cli, older, tmp_path, name):
    text, message = YAMLS[name]
    (tmp_path / "run.yaml").write_text(text)
    before = contents(older)
    refused(cli("compress", tmp_path / "run.yaml", *OLDER, older), message)
    assert contents(older) == before


def test_a_run_file_that_is_not_there_or_not_text(cli, tmp_path):
    refused(cli("compress", tmp_path / "nowhere.yaml"), "wanted a readable run file.*Check the path")
    refused(cli("compress", tmp_path), "wanted a readable run file")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    refused(cli("compress", tmp_path / "binary.yaml"), "wanted a readable run file")


def test_unknown_flags_and_commands_are_usage_errors(cli):
    for arguments in (("compress", "--bit", "2"), ("compres",), ("compress", "--epochs", "many")):
        run = cli(*arguments)
        assert run.status == 2 and "Traceback" not in run.err and run.out == ""


def test_a_teacher_of_other_classes(cli, older, tmp_path):
    """An artifact with 7 outputs whose config.json names the architecture, so that it loads without help."""
    from bitstill.data.networks import from_architecture

    odd = from_architecture({"architecture": "resnet", "arguments": {"depth": 8, "width": 4, "channels": 1, "classes": 7}})
    write(tmp_path / "odd", odd)
    before = contents(older)
    run = cli(*QD, "--teacher", tmp_path / "odd", "--student", "digits-student", *OLDER, older)
    refused(run, "teacher: wanted 10 classes, as digits has, got 7 outputs")
    assert contents(older) == before


def write(folder, model):
    from bitstill.artifact.writer import Storage
    from bitstill.artifact.writer import write as write_artifact_files
    from bitstill.data.networks import architecture_of
    from bitstill.model.contents import contents_of

    folder.mkdir()
    packed = model.eval()
    write_artifact_files(folder, contents_of(packed), {**architecture_of(model), "task": "digits"}, Storage())


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_that_are_not_numbers(cli, older, tmp_path, role):
    from bitstill.data.networks import build

    broken = build("digits-student")
    broken.get_submodule("hidden.0").weight.data[0, 0] = float("nan")
    write(tmp_path / "broken", broken)
    before = contents(older)
    models = {"student": "digits-student", "teacher": "digits-teacher", role: tmp_path / "broken"}
    run = cli(*QD, "--teacher", models["teacher"], "--student", models["student"], *OLDER, older)
    refused(run, "hidden.0.weight: wanted finite numbers, got nan")
    assert contents(older) == before


def test_data_that_are_not_numbers_or_not_there(cli, older, monkeypatch, tmp_path):
    from bitstill.data.catalogue import TASKS
    from bitstill.data.task import Split

    before = contents(older)
    with monkeypatch.context() as patch:
        patch.setitem(TASKS, "digits", lambda _: Split({"x": torch.tensor([[float("nan")]])}, torch.tensor([0])))
        refused(cli(*PT, *OLDER, older), "data: x: wanted finite data, got NaN or infinity")
        patch.setitem(TASKS, "digits", lambda _: Split({"x": torch.zeros(0, 1)}, torch.zeros(0, dtype=torch.int64)))
        refused(cli(*PT, *OLDER, older), "wanted at least one sample")
    monkeypatch.delenv("BITSTILL_DATA", raising=False)
    run = cli(
        "compress",
        "--recipe",
        "post-training",
        "--task",
        "cifar10",
        "--data",
        tmp_path,
        "--model",
        "resnet-20",
        "--out",
        older,
        "--force",
    )
    refused(run, r"wanted train.parquet, or its pieces, got no such files. Point --data or BITSTILL_DATA at the folder")
    assert contents(older) == before


def test_a_network_in_which_every_layer_is_kept_in_float(cli, older, tmp_path):
    from bitstill.data.networks import from_architecture

    arguments = {"blocks": [[4]], "kernel": 3, "hidden": [], "channels": 1, "size": 8}
    write(tmp_path / "tiny", from_architecture({"architecture": "conv-net", "arguments": arguments}))
    before = contents(older)
    run = cli(*PT[:-1], tmp_path / "tiny", *OLDER, older)
    refused(run, r"wanted at least one layer to compress, got targets .* minus ignore .* leave none. Ignore fewer layers")
    assert contents(older) == before


# artifacts that cannot be read


def missing(folder):
    shutil.rmtree(folder)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flipped(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def newer(folder):
    edit(folder, lambda config: config["quantization_config"].update(version=99))


def foreign(folder):
    edit(folder, lambda config: config["quantization_config"].update(quant_method="gptq"))


def edited_layer(folder):
    edit(folder, lambda config: next(iter(config["quantization_config"]["layers"].values())).update(scale_dtype="float32"))


DAMAGED = {
    missing: "wanted a folder with an artifact, got no such folder. Check the path",
    empty: "got no config.json",
    truncated: "wanted an intact safetensors file.*truncated or damaged",
    flipped: "wanted the weights that config.json describes",
    no_weights: "got no model.safetensors",
    broken_config: "wanted a quantization_config written by bitstill",
    newer: "wanted format version 1 or 2 or 3, got 99.*Upgrade bitstill",
    foreign: "wanted quant_method 'bitstill', got 'gptq'",
    edited_layer: "wanted the config.json that was delivered",
}


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda function: function.__name__)
def test_artifacts_that_cannot_be_read(cli, older, damage):
    damage(older)
    refused(cli("evaluate", older), DAMAGED[damage])
    refused(cli("inspect", older), DAMAGED[damage])
    with pytest.raises(bitstill.BitstillError):
        bitstill.load(older)
    if damage is not missing:  # given as a model, a missing path may have been meant as a name
        refused(cli(*PT[:-1], older, "--dry-run"), DAMAGED[damage])


def test_evaluate_refuses_an_unknown_split_or_task(cli, older):
    refused(cli("evaluate", older, "--split", "tset"), r"split: wanted a known split, got 'tset'. Did you mean 'test'\?")
    for name in ("mine", None, ["digits"]):
        edit_signed(older, config=lambda config, name=name: config.update(task=name))
        refused(cli("evaluate", older), "an artifact of a known task.*bitstill.load")


def test_an_architecture_that_is_not_bitstills(cli, older):
    edit_signed(older, config=lambda config: config.update(architecture=None, **{"class": "my.Net"}))
    refused(cli("evaluate", older), r"got a my.Net. .*bitstill.load\(folder, model=network\)")


# places that cannot be written


def test_out_may_not_replace_something_else(cli, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    for name in ("notes", "model", "file"):
        before = contents(tmp_path)
        refused(
            cli(*PT, "--out", tmp_path / name),
            "wanted a new folder, an empty one or an older artifact and nothing else, got something else",
        )
        assert contents(tmp_path) == before
    refused(cli(*PT, "--out", tmp_path / "file" / "below"), "wanted a folder that can be written")


def test_out_may_not_be_the_current_folder(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(cli(*PT, "--out", "."), "wanted a folder for the artifact alone, got the current one")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("name", ["model.safetensors", "report.json", ".older.checkpoint.safetensors"])
def test_a_full_or_read_only_disk(cli, older, monkeypatch, name, code):
    def fail(path, *parts):
        if path.name == name:
            raise OSError(code, "No space left on device" if code == errno.ENOSPC else "Permission denied")
        write_file(path, *parts)

    for module in list(sys.modules.values()):
        if getattr(module, "write_file", None) is write_file and module.__name__.startswith("bitstill"):
            monkeypatch.setattr(module, "write_file", fail)
    before = contents(older)
    refused(
        cli(*PT, *OLDER, older),
        "wanted a folder that can be written, got (No space|Permission).*older artifact there is untouched",
    )
    assert contents(older) == before
    assert set(beside(older)) <= {"older", ".older.checkpoint.safetensors"}, "nothing half-written stays behind"


def test_a_folder_without_permission(cli, older, monkeypatch):
    real = files.os.access  # root may write anywhere
    monkeypatch.setattr(files.os, "access", lambda path, mode: str(path) != str(older.parent) and real(path, mode))
    before = contents(older)
    refused(cli(*PT, *OLDER, older), "wanted a folder that can be written, got Permission denied")
    assert contents(older) == before


def test_resume_with_a_checkpoint_of_another_recipe(cli, older, teacher, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    checkpoint = older.with_name(".older.checkpoint.safetensors")
    before = contents(older)
    flags = (
        *QD,
        "--teacher",
        teacher,
        "--student",
        "digits-student",
        "--set",
        "settings.progress=false",
        "--out",
        older,
        "--force",
    )
    with monkeypatch.context() as patch:
        patch.setattr("bitstill.train.loop.check_gradients", stop)
        run = cli(*flags, "--steps", "3", "--checkpoint-every", "1")
    assert run.status == 130 and "\nStopped." in run.err and "--resume" in run.err and checkpoint.exists()
    kept = checkpoint.read_bytes()
    refused(cli(*flags, "--steps", "4", "--resume"), "a checkpoint of this run.*--out")
    refused(cli(*PT, "--out", older, "--resume"), "a checkpoint of this run")
    assert checkpoint.read_bytes() == kept and contents(older) == before
    checkpoint.write_bytes(kept[:100])
    refused(cli(*flags, "--steps", "3", "--resume"), "wanted an intact checkpoint.*Delete it to start again")
    checkpoint.write_bytes(kept)
    assert cli(*flags, "--steps", "3", "--resume").status == 0
    assert not checkpoint.exists() and contents(older) != before


def test_describing_an_unknown_recipe(cli):
    refused(cli("recipes", "smaller"), "recipe: wanted a known recipe, got 'smaller'. Valid:")


def test_the_library_refuses_the_same_before_training(tmp_path):
    with pytest.raises(bitstill.BitstillError, match="folder for the artifact alone"):
        bitstill.compress(PostTraining(), "digits", {"student": "digits-student"}, out=".", settings=Settings(progress=False))
