"""The command line on valid input: runs of three steps, run files, dry runs, and printed output."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

QD = ("compress", "--recipe", "quantized-distillation", "--task", "digits", "--student", "digits-student")
QUIET = ("--set", "settings.progress=false", "--set", "settings.device=cpu")
SHORT = ("--steps", "3", *QUIET)


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_compress_with_flags(cli, teacher, tmp_path):
    out = tmp_path / "made" / "here"
    run = cli(*QD, "--teacher", teacher, "--bits", "2", "--seed", "5", *SHORT, "--out", out)
    found = report(out)
    assert run.status == 0 and run.err == "".join(f"warning: {message}\n" for message in found["warnings"])
    assert found["settings"]["seed"] == 5 and found["recipe"]["bits"] == 2 and found["recipe"]["steps"] == 3
    shown = " ".join(run.out.split())
    for text in (f"{found['delivered']['test']:.2f}", f"{found['size']['file_bytes']:,} bytes", str(out)[-20:], "teacher"):
        assert text in shown.replace(" ", "") or text in shown
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "config.json", "recipe.yaml", "report.json", "report.html", "README.md",
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["here"], "no checkpoint, no temporary folder"


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(cli, teacher, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli(*QD, "--teacher", teacher, "--seed", seed, *SHORT, "--out", tmp_path / name).status == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_compress_replaces_an_older_artifact_whole(cli, older, teacher):
    again = (*QD, "--teacher", teacher, "--bits", "1", *SHORT, "--out", older)
    refused = cli(*again)
    assert refused.status == 1 and "a finished artifact" in refused.err and "--force" in refused.err
    assert cli(*again, "--force").status == 0
    assert report(older)["recipe"]["bits"] == 1


def test_compress_does_not_replace_a_folder_that_holds_a_file_of_yours(cli, older, teacher):
    (older / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in older.iterdir()}
    assert cli(*QD, "--teacher", teacher, "--bits", "1", *SHORT, "--out", older).status == 1
    assert {path.name: path.read_bytes() for path in older.iterdir()} == before


def test_a_run_file_and_flags_that_override_it(cli, teacher, tmp_path):
    run_file = tmp_path / "run.yaml"
    content = {
        "recipe": "quantized-distillation", "task": "digits", "teacher": str(teacher), "student": "digits-student",
        "options": {"bits": 4, "steps": 3, "lr": 0.03}, "settings": {"seed": 3, "progress": False, "device": "cpu"},
        "storage": {"leftovers": "float16"}, "out": str(tmp_path / "from-file"),
    }  # fmt: skip
    run_file.write_text(yaml.safe_dump(content))
    assert cli("compress", run_file).status == 0
    found = report(tmp_path / "from-file")
    assert (found["recipe"]["bits"], found["recipe"]["lr"], found["settings"]["seed"]) == (4, 0.03, 3)
    assert found["storage"]["leftovers"] == "float16"
    run = cli("compress", run_file, "--bits", "2", "--seed", "4", "--set", "lr=2e-3", "--set", "storage.leftovers=float32",
              "--out", tmp_path / "other")  # fmt: skip
    assert run.status == 0
    found = report(tmp_path / "other")
    assert (found["recipe"]["bits"], found["recipe"]["lr"], found["settings"]["seed"]) == (2, 0.002, 4)
    assert found["storage"]["leftovers"] == "float32" and found["recipe"]["steps"] == 3


def test_epochs_on_the_command_line_beat_steps_in_the_file(cli, teacher, tmp_path):
    """The file would give 256 steps; half an epoch of 1,100 samples in batches of 128 is 4 steps."""
    run_file = tmp_path / "run.yaml"
    options = {"steps": 256}
    content = {"recipe": "quantized-distillation", "task": "digits", "model": str(teacher), "options": options}
    run_file.write_text(yaml.safe_dump(content))
    planned = json.loads(cli("compress", run_file, "--epochs", "0.5", "--dry-run", "--json").out)
    assert [stage["steps"] for stage in planned["stages"]] == [4]
    planned = json.loads(cli("compress", run_file, "--dry-run", "--json").out)
    assert [stage["steps"] for stage in planned["stages"]] == [256]


def test_the_delivered_recipe_file_makes_the_same_artifact_again(cli, delivered, tmp_path):
    assert cli("compress", delivered / "recipe.yaml", "--out", tmp_path / "again").status == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (delivered / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("bits", "quantizer", "nominal"),
    [("ternary", "ternary", 2), ("1", "binary", 1), ("3", "3-bit affine", 3), ("none", None, 0)],
)
def test_bits(cli, teacher, tmp_path, bits, quantizer, nominal):
    run = cli(*QD, "--teacher", teacher, "--bits", bits, *SHORT, "--out", tmp_path / "out", "--json")
    found = json.loads(run.out)
    assert found == report(tmp_path / "out"), "what is printed is what is delivered"
    assert {layer["quantizer"] for layer in found["size"]["layers"]} == ({quantizer} if quantizer else set())
    assert found["size"]["nominal_bits"] == nominal
    if bits == "none":
        assert found["size"]["float_bytes"] == 4 * 14_842 + 4 * 2 * (12 + 16 + 48) + 4 * 3, "with the norms' statistics"
        assert found["size"]["by_kind"]["codes"] == 0 and cli("inspect", tmp_path / "out").status == 0


@pytest.mark.parametrize("recipe", ["differentiable-quantization", "post-training", "quantized-distillation"])
@pytest.mark.parametrize("extra", [(), ("--set", "storage.leftovers=float16", "--bits", "3")], ids=["defaults", "float16"])
def test_a_dry_run_knows_the_bytes_of_the_delivered_file_and_writes_nothing(cli, teacher, tmp_path, recipe, extra):
    """Shared points are excluded: their number per layer, and so the padding of codes, depends on gradients."""
    own = {
        "quantized-distillation": ("--steps", "2"),
        "differentiable-quantization": ("--steps", "2", "--set", "float_epochs=0", "--set", "share_points=false"),
        "post-training": (),
    }[recipe]
    flags = ("--recipe", recipe, "--task", "digits", "--model", teacher, "--out", tmp_path / "out", *own, *extra, *QUIET)
    planned = json.loads(cli("compress", *flags, "--dry-run", "--json").out)
    assert not list(tmp_path.iterdir())
    assert cli("compress", *flags).status == 0
    done = report(tmp_path / "out")
    assert planned["size"]["file_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert planned["size"]["by_kind"] == done["size"]["by_kind"]
    assert planned["parameters"] == done["parameters"] and planned["recipe"] == done["recipe"]


def test_a_dry_run_shows_layers_and_needs_no_out(cli, teacher):
    run = cli(*QD, "--teacher", teacher, "--dry-run", "--bits", "2")
    assert run.status == 0 and run.err == ""
    for text in ("features.3", "hidden.0", "2-bit affine", "file"):
        assert text in run.out


def test_help_names_every_command(cli):
    run = cli("--help")
    assert run.status == 0
    for name in ("compress", "demo", "evaluate", "inspect", "recipes"):
        assert name in run.out


def console(*arguments, cwd):
    command = [sys.executable, "-m", "bitstill.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_in_a_process_of_its_own_an_error_is_one_message(tmp_path, delivered):
    run = console("evaluate", "nowhere", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (1, "")
    assert (
        run.stderr
        == "error: nowhere: wanted a folder with an artifact, got no such folder. Check the path, or deliver the model first.\n"
    )


def test_in_a_process_of_its_own_inspect_prints_json_alone(tmp_path, delivered):
    run = console("inspect", delivered, "--json", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads(run.stdout)["task"] == "digits"
