"""`compress`, `Result.save` and `load`, with bitstill's networks and tasks and with a user's own."""

from __future__ import annotations

import copy
import doctest
import gc
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import bitstill
import bitstill.report.page
import bitstill.run.compress
from bitstill import Storage
from bitstill.data import Split, Task
from bitstill.data.networks import build
from bitstill.data.objectives import Classification, Regression
from bitstill.decode import encode
from bitstill.errors import ArtifactError, DataError, SpecError
from bitstill.quant.rules import Compression, Uniform
from bitstill.recipes import DifferentiableQuantization, FineTuning, PostTraining, QuantizedDistillation
from bitstill.run.run_file import read_run
from bitstill.train import Settings
from bitstill.train.actions import Compress
from bitstill.train.stage import Stage

QUIET = Settings(progress=False, device="cpu", teacher_precision="float32")
SHORT = {"steps": 3, "batch_size": 32}


@pytest.fixture(autouse=True)
def _no_page(request, monkeypatch):
    if "page" not in request.node.name:
        monkeypatch.setattr(bitstill.report.page, "artifact_page", lambda *_, **__: "<!doctype html>")


class Mlp(nn.Module):
    """A user's network: three classes from six numbers, and a buffer that must be delivered too."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.register_buffer("offset", torch.full((6,), 0.25))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x - self.offset))


def forward(model, batch):
    return model(batch["x"])


def split(samples, seed):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))
    return Split({"x": x}, x[:, :3].argmax(-1))


def own_task(**changes):
    settings = {
        "name": "mine",
        "train": split(96, 1),
        "validation": split(32, 2),
        "test": split(64, 3),
        "objective": Classification(3),
        "forward": forward,
    }
    return Task(**{**settings, **changes})  # fmt: skip


@pytest.fixture
def networks():
    torch.manual_seed(1)
    return {"teacher": Mlp(24), "student": Mlp(16)}


def own(networks, recipe=None, task=None, **arguments):
    recipe = recipe or QuantizedDistillation(2, **SHORT)
    return bitstill.compress(recipe, task or own_task(), networks, **{"settings": QUIET, **arguments})


# a user's own network and task


def test_a_users_network_and_task_go_there_and_back(networks, tmp_path):
    result = own(networks, out=tmp_path / "out")
    again = bitstill.load(tmp_path / "out", model=Mlp(16))
    x = own_task().test.inputs["x"]
    assert torch.equal(again(x), result.model(x))
    accuracy = 100 * float((again(x).argmax(-1) == own_task().test.labels).double().mean())
    delivered = result.report["delivered"]
    assert delivered["metric"] == "accuracy" and delivered["samples"] == 64
    assert delivered["test"] == delivered["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert result.report["task"] == "mine" and result.report["size"]["nominal_bits"] == 2
    assert torch.equal(again.offset, networks["student"].offset)


def test_the_network_handed_to_load_is_copied(networks, tmp_path):
    own(networks, out=tmp_path / "out")
    blank = Mlp(16)
    before = copy.deepcopy(blank.state_dict())
    assert bitstill.load(tmp_path / "out", model=blank) is not blank
    assert type(blank.head) is nn.Linear and all(torch.equal(t, before[n]) for n, t in blank.state_dict().items())


def test_networks_handed_in_are_left_unchanged(networks):
    networks["student"].eval()
    before = copy.deepcopy({name: network.state_dict() for name, network in networks.items()})
    kinds = {name: [type(m) for m in network.modules()] for name, network in networks.items()}
    result = own(networks)
    for name, network in networks.items():
        assert all(torch.equal(t, before[name][key]) for key, t in network.state_dict().items())
        assert [type(m) for m in network.modules()] == kinds[name] and all(p.grad is None for p in network.parameters())
        assert result.models[name] is not network
    assert not networks["student"].training and networks["teacher"].training
    assert not torch.equal(result.models["student"].head.weight, networks["student"].head.weight), "the copy has learned"


def test_loading_a_users_network_without_it_says_what_to_pass(networks, tmp_path):
    own(networks, out=tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"tests\.run\.test_compress\.Mlp.*bitstill\.load\(folder, model=network\)"):
        bitstill.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "message"), [(Mlp(20), "a weight of shape"), (nn.Linear(6, 3), "wanted a Linear layer, got none")]
)
def test_loading_into_another_architecture_is_refused(networks, tmp_path, model, message):
    own(networks, out=tmp_path / "out")
    with pytest.raises(ArtifactError, match=message):
        bitstill.load(tmp_path / "out", model=model)


def test_a_quantized_artifact_of_a_users_network_can_teach_in_memory(networks, tmp_path):
    own(networks, PostTraining(8, skip="none"), out=tmp_path / "t")
    teacher = bitstill.load(tmp_path / "t", model=Mlp(16))
    result = own({"teacher": teacher, "student": Mlp(16)})
    x = own_task().test.inputs["x"]
    accuracy = 100 * float((teacher(x).argmax(-1) == own_task().test.labels).double().mean())
    assert result.report["teacher"]["test"] == pytest.approx(accuracy, abs=1e-9)


def test_outputs_with_logits_inside_are_read_everywhere(networks):
    """As in outputs of Hugging Face models."""

    class Wrapped(Mlp):
        def forward(self, x):
            return SimpleNamespace(logits=super().forward(x), loss=None)

    result = own(
        {"teacher": Wrapped(), "student": Wrapped()}, DifferentiableQuantization(2, float_epochs=0, teacher="teacher", **SHORT)
    )
    assert result.report["delivered"]["samples"] == 64


def hits(logits, labels):
    return float((logits.argmax(-1) == labels).sum())


def test_a_users_metric_decides():
    task = own_task(objective=Classification(3, decides="hits", extra_metrics={"hits": hits}))
    result = own({"student": Mlp()}, PostTraining(4), task)
    assert result.report["delivered"]["metric"] == "hits" and result.report["delivered"]["test"] == int(
        result.report["delivered"]["test"]
    )


@dataclass(frozen=True)
class Mine:
    """A user's recipe: just the protocol."""

    bits: int = 3
    needs_teacher = False
    makes_student = False

    def stages(self, context):
        rule = Compression(targets=("body.*",), weight=Uniform(self.bits))
        return (Stage("only", begin=(Compress("student", rule),)),)


def test_a_users_recipe_runs_and_is_reported():
    result = own({"student": Mlp()}, Mine(5))
    assert result.report["recipe"] == {"kind": "tests.run.test_compress:Mine", "bits": 5}
    assert {layer["name"] for layer in result.report["size"]["layers"]} == {"body.0", "body.2"}


# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": Classification(4)}, r"4 classes, as mine has, got 3 outputs"),
        ({"objective": Classification(2)}, r"int64 labels from 0 to 1, got int64 from 0 to 2"),
    ],
)
def test_classes_that_do_not_fit(networks, changes, message):
    with pytest.raises(DataError, match=message):
        own(networks, task=own_task(**changes))


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.tensor([0, 1], dtype=torch.int32)]
)
def test_labels_that_cannot_be_classes(labels):
    bad = Split({"x": torch.zeros(2, 6)}, labels)
    with pytest.raises(DataError, match="mine, validation split: wanted int64 labels from 0 to 2"):
        own_task(validation=bad)
    assert own_task(validation=bad, objective=Regression()), "regression may have any"


def test_inputs_that_the_network_cannot_read(networks):
    with pytest.raises(DataError, match=r"student: wanted a model that reads mine \(x \(6,\)\).*Choose a model for this task"):
        own({**networks, "student": nn.Linear(7, 3)})


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_and_buffers_that_are_not_numbers(networks, role):
    networks[role].offset[0] = float("inf")
    with pytest.raises(DataError, match=f"{role}: offset: wanted finite weights"):
        own(networks)


@pytest.mark.parametrize("inputs", [torch.zeros(3, 6), torch.full((2, 6), float("nan"))])
def test_data_that_cannot_be(inputs):
    with pytest.raises(DataError):
        Split({"x": inputs}, torch.zeros(2, dtype=torch.int64))


def test_roles(networks):
    with pytest.raises(SpecError, match=r"models: wanted a known role, got 'techer'. Did you mean 'teacher'\?"):
        own({"techer": networks["teacher"], "student": networks["student"]})
    with pytest.raises(SpecError, match="a model for the role 'teacher'"):
        own({"student": networks["student"]})
    with pytest.raises(SpecError, match="a model for the role 'student'"):
        own({"teacher": networks["teacher"]})


def test_one_model_plays_every_role_that_the_recipe_needs_filled(networks):
    alone = own(networks["teacher"]).report
    assert alone == {**own({"teacher": networks["teacher"], "student": networks["teacher"]}).report, **clock(alone)}
    assert "teacher" not in own(networks["student"], PostTraining(2, skip="none")).report


def clock(report):
    return {"wall_seconds": report["wall_seconds"]}


def test_a_failed_run_leaves_the_older_artifact(networks, tmp_path):
    own(networks, out=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(bitstill.errors.TrainingError, match="a finite loss"):
        own(
            networks,
            QuantizedDistillation(4, lr=1e30, clip_norm=None, steps=20, batch_size=32),
            out=tmp_path / "out",
            force=True,
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# bitstill's networks and tasks; the delivered folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "student"
    settings = Settings(seed=4, progress=False, device="cpu", teacher_precision="float32")
    recipe = QuantizedDistillation(2, steps=3, teacher_epochs=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitstill.report.page, "artifact_page", lambda *_, **__: "<!doctype html>")
        models = {"teacher": "digits-teacher", "student": "digits-student"}
        result = bitstill.compress(recipe, "digits", models, out=folder, settings=settings, storage=Storage("float16"))
    return recipe, settings, result


def test_the_report_says_what_was_done_and_what_came_of_it(digits):
    recipe, settings, result = digits
    found = json.loads((result.folder / "report.json").read_text())
    assert found == result.report
    assert (
        found["recipe"] == encode(recipe)
        and found["settings"] == encode(settings)
        and found["storage"] == encode(Storage("float16"))
    )
    assert found["task"] == "digits" and found["settings"]["seed"] == 4
    assert found["teacher"]["metric"] == found["delivered"]["metric"] == "accuracy"
    assert 0 <= found["teacher"]["test"] <= 100 and found["teacher"]["file_bytes"] > 4 * 62_762
    assert found["wall_seconds"] > 0 and {"bitstill", "python", "torch", "numpy"} <= set(found["versions"])
    assert {entry["stage"] for entry in found["history"]} == {"teacher", "quantized distillation"}
    size = found["size"]
    assert size["file_bytes"] == (result.folder / "model.safetensors").stat().st_size == sum(size["by_kind"].values())
    assert {"codes", "scales", "leftovers", "masks", "header"} <= set(size["by_kind"])
    assert (
        size["nominal_bits"] == 2 and 2 < size["stored_bits"] < 3 and size["ratio"] == size["float_bytes"] / size["file_bytes"]
    )
    names = [row["parameter"] for row in found["parameters"]]
    assert names == [name for name, _ in build("digits-student").named_parameters()]


def test_the_recipe_file_gives_the_same_run_again(digits):
    recipe, settings, result = digits
    run = read_run(result.folder / "recipe.yaml", {})
    assert run.build_recipe() == recipe and run.settings == settings and run.storage == Storage("float16")
    assert run.models(recipe) == {"teacher": "digits-teacher", "student": "digits-student"} and run.task == "digits"


def test_what_is_loaded_is_what_was_returned(digits):
    _, _, result = digits
    loaded = bitstill.load(result.folder)
    assert loaded.state_dict().keys() == result.model.state_dict().keys()
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(loaded(x), result.model(x)) and not loaded.training


def test_save_copies_replaces_and_refuses(digits, tmp_path):
    _, _, result = digits
    files = {path.name: path.read_bytes() for path in result.folder.iterdir()}
    for _ in range(2):
        assert result.save(tmp_path / "a" / "copy") == tmp_path / "a" / "copy"
        assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "copy").iterdir()} == files
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match="something else"):
        result.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_without_out_the_artifact_lives_as_long_as_the_result(networks, tmp_path):
    result = own(networks, PostTraining(4))
    folder = result.folder
    assert (folder / "model.safetensors").exists()
    result.save(tmp_path / "kept")
    del result
    gc.collect()
    assert not folder.exists() and bitstill.load(tmp_path / "kept", model=Mlp()) is not None


def test_names_folders_and_networks_may_be_mixed(digits, tmp_path):
    _, _, digits_result = digits
    first = QuantizedDistillation(None, kd_weight=0, steps=2)
    bitstill.compress(first, "digits", {"student": "digits-student"}, out=tmp_path / "float", settings=QUIET)
    for student in (build("digits-student"), tmp_path / "float", str(tmp_path / "float")):
        models = {"teacher": digits_result.folder, "student": student}
        result = bitstill.compress(QuantizedDistillation(2, steps=1), "digits", models, settings=QUIET)
        assert result.report["size"]["nominal_bits"] == 2
    assert bitstill.compress("post-training", "digits", {"student": tmp_path / "float"}, settings=QUIET).report[
        "recipe"
    ] == encode(PostTraining())


def test_an_unknown_name_lists_the_networks():
    with pytest.raises(
        SpecError, match=r"student: wanted a known model, or the folder of an artifact or of a Hugging Face model, got 'resnet'"
    ):
        bitstill.compress(PostTraining(), "digits", {"student": "resnet"}, settings=QUIET)


def test_the_page_comes_with_the_artifact(networks, tmp_path):
    own(networks, PostTraining(2), out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>") and len(page) > 1000


def test_the_example_in_the_docstring_runs():
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = [
        test for test in finder.find(bitstill.run.compress.compress, "compress", module=bitstill.run.compress) if test.examples
    ]
    found = doctest.DocTestRunner(verbose=False).run(example)
    assert found.attempted >= 5 and found.failed == 0


def test_the_folder_of_a_result_is_absolute(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = own(networks, PostTraining(4), out="here")
    assert result.folder == tmp_path / "here" and Path("here/config.json").exists()


def test_class_weights_reach_the_run_and_its_recipe_file(tmp_path, networks):
    recipe, models = FineTuning(steps=20, lr=1e-2, batch_size=32, validations=1), {"student": networks["student"]}
    plain = bitstill.compress(recipe, own_task(), models, settings=QUIET)
    weights = (10.0, 0.1, 0.1)
    weighted = bitstill.compress(recipe, own_task(), models, out=tmp_path / "out", class_weights=weights, settings=QUIET)
    recall = [result.report["delivered"]["details"]["per class"]["rows"]["0"][1] for result in (plain, weighted)]
    assert recall[1] > max(recall[0], 95)
    assert read_run(tmp_path / "out" / "recipe.yaml", {}).class_weights == weights


def test_class_weights_of_the_wrong_length_are_refused_before_training(tmp_path):
    with pytest.raises(SpecError, match=r"class_weights: wanted 3 class weights, some above 0, got 2: 1.0, 2.0"):
        bitstill.compress(FineTuning(steps=4), own_task(), {"student": Mlp()}, class_weights=(1.0, 2.0), settings=QUIET)
