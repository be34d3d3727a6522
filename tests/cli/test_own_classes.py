"""User-defined recipes, quantizers, tasks and models on the command line, and the recipe.yaml that repeats the run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from bitstill.recipes.by_name import describe
from tests.signing import edit_signed

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


def test_a_quantizer_of_ones_own_is_run_and_repeated(cli, at_root, tmp_path):
    quantizer = "weight_quantizer={kind: examples.own_quantizer:PowersOfTwo, bits: 3}"
    models = ("--teacher", "digits-teacher", "--student", "digits-student", "--set", "teacher_epochs=0.5", "--steps", 5)
    run = ("compress", "--recipe", "quantized-distillation", "--task", "digits", *models, *QUICK)
    done = cli(*run, "--set", quantizer, "--out", tmp_path / "a")
    assert done.status == 0, done.err
    options = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())["options"]
    assert options["weight_quantizer"]["kind"] == "examples.own_quantizer:PowersOfTwo"
    assert cli("compress", tmp_path / "a" / "recipe.yaml", "--out", tmp_path / "b").status == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_its_options_are_listed_like_those_of_any_other(cli, at_root):
    assert [option["name"] for option in describe(RECIPE)["options"]] == [
        "quantizer", "first_epochs", "second_epochs", "lr", "teacher_epochs",
    ]  # fmt: skip
    shown = " ".join(cli("recipes", RECIPE).out.split())
    assert "Distillation from the teacher's logits, then, at half the learning rate" in shown, "the class, in a sentence"
    assert "peak learning rate of the first stage; the second uses half of it" in shown


@pytest.mark.parametrize(("recipe", "message"), [
    ("examples.own_recipe:TernaryInTwoStep", "wanted a name in examples.own_recipe, got 'TernaryInTwoStep'. Did you mean"),
    ("examples.no_recipe:Recipe", "recipe: wanted a module, got none called 'examples.no_recipe'"),
    ("bitstill.quant:Binary", "wanted a Recipe, got 'bitstill.quant:Binary', without needs_teacher, makes_student, stages"),
    ("ternary-in-two-steps", "wanted a known recipe, got 'ternary-in-two-steps'. Valid: .* Your own: package.module:Name"),
])  # fmt: skip
def test_what_is_no_recipe_is_one_clear_error(cli, at_root, recipe, message):
    done = cli("compress", "--recipe", recipe, "--task", "digits", "--out", "never")
    assert done.status == 1 and re.search(message, done.err) and "Traceback" not in done.err


OWN = """
import torch
from torch import nn
from bitstill.data import Classification, Split, Task

def spots(data=None):
    x = torch.rand(300, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > x[:, 1]).long()
    parts = [Split({"x": x[i : i + 100]}, y[i : i + 100]) for i in (0, 100, 200)]
    return Task("spots", *parts, Classification(2), forward=lambda model, batch: model(batch["x"]))

SPOTS = spots()

class Mlp(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stack = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 2))
    def forward(self, x):
        return self.stack(x)

def trained():
    network = Mlp()
    for number, parameter in enumerate(network.parameters()):
        parameter.data = torch.linspace(-1, 1 + number, parameter.numel()).reshape(parameter.shape)
    return network

TRAINED = trained()

def no_task(data=None): return 3
def no_network(): return "network"
def wants_width(width): return Mlp(width)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Name of a module in the current directory."""
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("teacher", ["trained", "TRAINED", "Mlp"])
@pytest.mark.parametrize("task", ["spots", "SPOTS"])
def test_a_task_and_networks_of_ones_own(cli, own, tmp_path, task, teacher):
    """A teacher with random weights is trained first; a trained one is not."""
    models = ("--teacher", f"{own}:{teacher}", "--student", f"{own}:Mlp", "--set", "skip=none", "--set", "augment=false")
    run = ("compress", "--recipe", "quantized-distillation", "--task", f"{own}:{task}", *models, "--steps", 3, "--bits", 2)
    done = cli(*run, "--set", "teacher_epochs=1", "--set", "batch_size=20", *QUICK, "--out", "a", "--json")
    assert done.status == 0, done.err
    stages = {row["stage"] for row in json.loads(done.out)["history"]}
    assert stages == {"quantized distillation"} | ({"teacher"} if teacher == "Mlp" else set())
    run_file = yaml.safe_load(Path("a/recipe.yaml").read_text())
    assert (run_file["task"], run_file["student"]) == (f"{own}:{task}", f"{own}:Mlp")
    assert cli("compress", "a/recipe.yaml", "--out", "b").status == 0
    assert weights(Path("a")) == weights(Path("b"))
    measured = cli("evaluate", "a", "--task", f"{own}:{task}", "--model", f"{own}:Mlp", "--json")
    assert json.loads(measured.out)["value"] == json.loads(done.out)["delivered"]["test"]


def test_an_artifact_never_imports_what_it_names(cli, own, tmp_path):
    """A stranger's file must not run code: evaluating imports only what the command line names."""
    models = ("--student", f"{own}:trained", "--task", f"{own}:spots")
    assert cli("compress", "--recipe", "post-training", *models, *QUICK, "--out", "a").status == 0
    del sys.modules[own]
    for command in (("inspect", "a"), ("evaluate", "a"), ("evaluate", "a", "--task", "digits"), ("compare", "a", "a")):
        cli(*command)
    edit_signed(Path("a"), config=lambda config: config.update(task=f"{own}:spots", architecture=f"{own}:spots"))
    refused = cli("evaluate", "a")
    assert refused.status == 1 and "a known task" in refused.err
    assert own not in sys.modules


@pytest.mark.parametrize(("flag", "path", "message"), [
    ("--task", "OWN:sposts", "task: wanted a name in own.*, got 'sposts'. Did you mean 'spots'"),
    ("--task", "OWN:no_task", "task: wanted a Task, got 'own.*:no_task', which is of type int. Name a bitstill.data.Task"),
    ("--task", "OWN:trained", "wanted a function of the data folder that returns a Task, got .*too many positional arguments"),
    ("--task", "spots", "wanted a known task, got 'spots'.*Your own: package.module:Name"),
    ("--student", "OWN:no_network", "student: wanted a network, got what 'own.*:no_network' returns, which is of type str"),
    ("--student", "OWN:SPOTS", "student: wanted a network, got 'own.*:SPOTS', which is of type Task"),
    ("--student", "OWN:wants_width", "wanted a network's class or a function, which needs no arguments, got .*'width'"),
    ("--student", "no.such:Network", "student: wanted a module, got none called 'no'"),
    ("--student", "OWN:Mlp", "wanted a trained student, got one whose weights"),
])  # fmt: skip
def test_what_is_no_task_or_no_network_is_one_clear_error(cli, own, flag, path, message):
    named = {"--task": f"{own}:SPOTS", "--student": f"{own}:trained", flag: path.replace("OWN", own)}
    options = [word for pair in named.items() for word in pair]
    done = cli("compress", "--recipe", "post-training", *options, *QUICK, "--out", "never")
    assert done.status == 1 and re.search(message, done.err) and "Traceback" not in done.err, done.err


def test_a_kind_of_task_of_ones_own_is_run_and_evaluated(cli, at_root, tmp_path):
    own = ("--task", "examples.own_task:visits")
    network = "examples.own_task:Network"
    done = cli("compress", "--recipe", "fine-tuning", *own, "--student", network, "--steps", 3, *QUICK, "--out", tmp_path / "a")
    assert done.status == 0 and "deviance explained" in done.out, done.err
    delivered = json.loads((tmp_path / "a" / "report.json").read_text())["delivered"]
    measured = json.loads(cli("evaluate", tmp_path / "a", *own, "--model", network, "--json").out)
    assert measured["value"] == delivered["test"] and measured["details"] == delivered["details"]


@pytest.mark.parametrize(
    ("task", "weights", "message"),
    [
        ("digits", "1,2,x", "--class-weights: wanted balanced, or one number per class, got '1,2,x'"),
        ("digits", "1,2", "class_weights: wanted 10 class weights, some above 0, got 2: 1.0, 2.0"),
        ("examples.own_task:visits", "balanced", "class_weights: wanted an objective with classes, got Counts"),
    ],
)
def test_class_weights_that_do_not_fit_are_one_clear_error(cli, at_root, task, weights, message):
    student = "digits-student" if task == "digits" else "examples.own_task:Network"
    run = cli(
        "compress", "--recipe", "fine-tuning", "--task", task, "--student", student, "--class-weights", weights, "--out", "no"
    )
    assert run.status == 1 and message in run.err and "Traceback" not in run.err
