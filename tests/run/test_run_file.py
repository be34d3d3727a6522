"""Run files: what is read, what overrides what, and the round trip through writing."""

from __future__ import annotations

import pytest
import yaml

from bitstill.artifact.writer import Storage
from bitstill.decode import encode
from bitstill.errors import SpecError
from bitstill.losses.features import Pair
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import Clipped, ExactScale, QuantizeInput
from bitstill.recipes import DifferentiableQuantization, PostTraining, QuantizedDistillation
from bitstill.recipes.by_name import recipe_name
from bitstill.run.run_file import RunFile, read_run
from bitstill.train.settings import Settings

BASE = {"recipe": "quantized-distillation", "task": "digits"}
RECIPES = [
    QuantizedDistillation(),
    QuantizedDistillation("ternary", PerChannel(), "float32", "paper", gradient=Clipped(0.5), steps=7, clip_norm=1.0),
    QuantizedDistillation(None, kd_weight=0, epochs=0.5, lr=1e-7),
    QuantizedDistillation(3, Bucket(256), rounding="stochastic", gradient=ExactScale(), pairs=(Pair("a", "b"), Pair("c", "d"))),
    QuantizedDistillation(2, PerTensor(), input=QuantizeInput(4, per="tensor", range="step")),
    DifferentiableQuantization(2, PerGroup(64), teacher="teacher", alternate=True, point_lr=3e-5),
    PostTraining(1, skip="none", input=QuantizeInput()),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_what_is_written_is_read_back(recipe, tmp_path):
    settings = Settings(seed=9, precision="bf16", accumulate=2, checkpoint_every=5, trackers=("tensorboard",))
    storage = Storage("float16", entropy_coding=True)
    run = RunFile(recipe_name(recipe), "digits", teacher="t", student="s", data="d", options=encode(recipe), settings=settings,
                  storage=storage, out="o")  # fmt: skip
    (tmp_path / "run.yaml").write_text(run.to_yaml())
    again = read_run(tmp_path / "run.yaml", {})
    assert again == run and again.build_recipe() == recipe
    assert again.to_yaml() == run.to_yaml()


def test_defaults_are_those_of_python():
    run = read_run(None, BASE)
    assert run == RunFile("quantized-distillation", "digits")
    assert run.build_recipe() == QuantizedDistillation() and (run.settings, run.storage) == (Settings(), Storage())
    assert set(yaml.safe_load(run.to_yaml())) == {"recipe", "task", "options", "settings", "storage"}


def test_flags_override_the_file_and_assignments_override_flags(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("{recipe: post-training, task: digits, out: a, options: {bits: 4, skip: none}, settings: {seed: 1}}")
    run = read_run(path, {"out": "b", "options.bits": 2, "settings.seed": 2, "model": None}, ["bits=1", "settings.seed=3"])
    assert (run.out, run.settings.seed, run.build_recipe()) == ("b", 3, PostTraining(1, skip="none"))
    assert read_run(path, {"recipe": None}) == read_run(path, {}), "a flag that was not given leaves the file's value"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2E3", 2000.0), ("1e+2", 100.0), (".5e-1", 0.05), ("1.e2", 100.0), ("0.25", 0.25), ("3", 3.0),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text, value):
    """YAML 1.1 reads 1e-4 as text, which no user intends."""
    assert read_run(None, BASE, [f"temperature={text}"]).build_recipe().temperature == value


@pytest.mark.parametrize("text", ["e5", "1e", "0x1e4z", "'1e-4'", "1e-4 x"])
def test_text_that_only_looks_like_a_number_stays_text(text):
    with pytest.raises(SpecError, match=r"temperature: wanted a value of type float, got .*\(str\)"):
        read_run(None, BASE, [f"temperature={text}"]).build_recipe()


def test_assignments_reach_every_setting():
    run = read_run(
        None,
        BASE,
        [
            "granularity={kind: PerGroup, size: 64}", "pairs=[{student: a, teacher: b}]", "bits=null",
            "settings.precision=bf16",
            "storage.entropy_coding=true", "options.lr=0.5", "gradient={kind: Clipped}", "gradient.bound=0.25",
        ],
    )  # fmt: skip
    wanted = QuantizedDistillation(None, PerGroup(64), gradient=Clipped(0.25), pairs=(Pair("a", "b"),), lr=0.5)
    assert run.build_recipe() == wanted
    assert run.settings.precision == "bf16" and run.storage.entropy_coding


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ({"model": "m"}, {"student": "m", "teacher": "m"}),
        ({"model": "m", "teacher": "t"}, {"student": "m", "teacher": "t"}),
        ({"model": "m", "student": "s"}, {"student": "s", "teacher": "m"}),
        ({"student": "s", "teacher": "t"}, {"student": "s", "teacher": "t"}),
        ({"student": "s"}, {"student": "s"}),
    ],
)
def test_one_model_serves_the_roles_that_are_not_named(names, wanted):
    run = RunFile("quantized-distillation", "digits", **names)
    assert run.models(run.build_recipe()) == wanted
    alone = RunFile("post-training", "digits", **names)
    assert alone.models(alone.build_recipe()) == {"student": wanted["student"]}


def test_a_flag_in_epochs_drops_steps_of_the_file_but_not_of_another_flag(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("{recipe: quantized-distillation, task: digits, options: {steps: 9}}")
    assert read_run(path, {"options.epochs": 2.0}).build_recipe() == QuantizedDistillation(epochs=2.0)
    assert read_run(path, {"options.epochs": None}).build_recipe().steps == 9


def test_reading_leaves_nothing_behind_between_calls():
    first = read_run(None, BASE, ["bits=2"])
    assert read_run(None, BASE).build_recipe() == QuantizedDistillation() and first.build_recipe().bits == 2


@pytest.mark.parametrize(("text", "weights"), [("balanced", "balanced"), ("[1, 0.5, 2]", (1, 0.5, 2))])
def test_class_weights_are_a_word_or_numbers(tmp_path, text, weights):
    path = tmp_path / "run.yaml"
    path.write_text(f"recipe: fine-tuning\ntask: digits\nstudent: digits-student\nclass_weights: {text}\n")
    run = read_run(path, {})
    assert run.class_weights == weights
    again = tmp_path / "again.yaml"
    again.write_text(run.to_yaml())
    assert read_run(again, {}) == run
