"""Recipes, quantizers, tasks and models of one's own on the command line, and the recipe.yaml that repeats the run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bitstill.recipes.catalogue import describe

ROOT = Path(__file__).parents[2]
RECIPE = "examples.own_recipe:TernaryInTwoSteps"
QUICK = ("--set", "settings.device=cpu", "--set", "settings.progress=false", "--set", "settings.teacher_precision=float32")
SHORT = ("--set", "first_epochs=0.5", "--set", "second_epochs=0.5", "--set", "teacher_epochs=0.5")


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_recipe_of_ones_own_is_run_and_repeated_from_its_file(cli, at_root, tmp_path):
    models = ("--teacher", "digits-teacher", "--student", "digits-student")
    done = cli("compress", "--recipe", RECIPE, "--task", "digits", *models, *SHORT, *QUICK, "--out", tmp_path / "a")
    assert done.status == 0, done.err
    run_file = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    assert run_file["recipe"] == run_file["options"]["kind"] == RECIPE
    assert cli("compress", tmp_path / "a" / "recipe.yaml", "--out", tmp_path / "b").status == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    cli("compress", tmp_path / "a" / "recipe.yaml", "--out", tmp_path / "c", "--set", "quantizer={kind: Uniform, bits: 2}")
    assert weights(tmp_path / "c") != weights(tmp_path / "a")


def test_its_options_are_listed_like_those_of_any_other(cli, at_root):
    assert [option["name"] for option in describe(RECIPE)["options"]] == [
        "quantizer", "first_epochs", "second_epochs", "lr", "teacher_epochs",
    ]  # fmt: skip
    assert "A student that learns from its teacher's logits" in " ".join(cli("recipes", RECIPE).out.split())


@pytest.mark.parametrize(("recipe", "message"), [
    ("examples.own_recipe:TernaryInTwoStep", "wanted a name in examples.own_recipe, got 'TernaryInTwoStep'. Did you mean"),
    ("examples.no_recipe:Recipe", "recipe: wanted a module, got none called 'examples.no_recipe'"),
    ("bitstill.quant:Binary", "wanted a Recipe, got 'bitstill.quant:Binary', without needs_teacher, makes_student, stages"),
    ("ternary-in-two-steps", "wanted a known recipe, got 'ternary-in-two-steps'. Valid: .* your own: package.module:Name"),
])  # fmt: skip
def test_what_is_no_recipe_is_one_clear_error(cli, at_root, recipe, message):
    done = cli("compress", "--recipe", recipe, "--task", "digits", "--out", "never")
    assert done.status == 1 and re.search(message, done.err) and "Traceback" not in done.err
