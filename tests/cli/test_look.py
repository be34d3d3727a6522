"""Commands that inspect artifacts and recipes: evaluate, inspect, recipes."""

from __future__ import annotations

import json

import pytest

import bitstill
from bitstill.data.catalogue import load_task
from bitstill.data.task import predict
from bitstill.recipes.by_name import RECIPES
from tests.signing import edit_signed


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_evaluate_finds_exactly_the_reported_figure(cli, delivered):
    found = json.loads(cli("evaluate", delivered, "--json").out)
    value = report(delivered)["delivered"]["test"]
    expected = {"task": "digits", "split": "test", "samples": 497, "metric": "accuracy", "value": value}
    assert {key: found[key] for key in expected} == expected and found["metrics"]["accuracy"] == value
    text = cli("evaluate", delivered)
    assert text.err == "" and f"{found['value']:.2f}" in text.out and "497" in text.out


def test_evaluate_on_the_validation_split(cli, delivered):
    found = json.loads(cli("evaluate", delivered, "--split", "validation", "--json").out)
    task = load_task("digits")
    classes = predict(bitstill.load(delivered), task, task.validation).argmax(-1)
    accuracy = 100 * float((classes == task.validation.labels).double().mean())
    assert (found["split"], found["samples"], found["value"]) == ("validation", 200, pytest.approx(accuracy))


def test_inspect_lists_every_layer_and_accounts_for_every_byte(cli, delivered):
    found = json.loads(cli("inspect", delivered, "--json").out)
    parameters = {row["parameter"]: row["action"] for row in found["parameters"]}
    wanted = {name for name, _ in bitstill.data.networks.build("digits-student").named_parameters()}
    assert wanted <= set(parameters)
    quantized = {name for name, action in parameters.items() if action == "quantized"}
    assert quantized == {row["parameter"] for row in report(delivered)["parameters"] if row["action"] == "quantized"}
    assert sum(found["size"]["by_kind"].values()) == found["size"]["file_bytes"]
    assert found["size"]["file_bytes"] == (delivered / "model.safetensors").stat().st_size
    assert found["size"] == report(delivered)["size"]
    table = cli("inspect", delivered).out
    for name in quantized:
        assert name.removesuffix(".weight") in table
    assert f"{found['size']['file_bytes']:,}" in table


def test_inspect_needs_no_known_architecture(cli, older):
    edit_signed(older, config=lambda config: config.update(architecture=None, task="mine"))
    assert json.loads(cli("inspect", older, "--json").out)["task"] == "mine"


def test_recipes_are_listed(cli):
    names = {row["name"] for row in json.loads(cli("recipes", "--json").out)}
    assert names == set(RECIPES)
    text = cli("recipes").out
    assert all(name in text for name in RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_options_of_a_recipe_are_listed(cli, name):
    found = json.loads(cli("recipes", name, "--json").out)
    text = cli("recipes", name).out
    assert found["name"] == name and found["options"] and found["stages"]
    assert text.lstrip().startswith("┌ 1.") and "delivered: student" in text
    assert all(option["name"] in text for option in found["options"])


def test_export_writes_another_runtime_s_file_and_says_how_close_it_is(cli, delivered, tmp_path):
    text = cli("export", delivered, "--out", tmp_path / "onnx")
    assert text.status == 0 and "have the same label" in text.out and (tmp_path / "onnx" / "model.onnx").exists()
    found = json.loads(cli("export", delivered, "--out", tmp_path / "again", "--json").out)
    assert found["compared"]["same_label"] == 1.0 and found["to"] == "onnx"
    assert "float" not in cli("export", delivered, "--out", tmp_path / "torch", "--to", "torch").err
    assert (tmp_path / "torch" / "model.safetensors").exists()


def test_an_export_is_compared_on_the_task(cli, delivered, tmp_path):
    text = cli("export", delivered, "--out", tmp_path / "onnx", "--on-task")
    wanted = report(delivered)["delivered"]["test"]
    assert text.status == 0 and "On 497 samples of digits, test" in " ".join(text.out.split())
    assert f"Its accuracy is {wanted:.2f} there, and {wanted:.2f} in torch." in text.out
    found = json.loads(cli("export", delivered, "--out", tmp_path / "ov", "--to", "openvino", "--on-task", "--json").out)
    assert found["compared"]["metric"] == ["accuracy", wanted, wanted] and found["compared"]["samples"] == 497


def test_compare_puts_artifacts_side_by_side(cli, delivered, teacher, tmp_path):
    options = ("--turns", 1, "--threads", 1)
    text = cli("compare", delivered, teacher, *options, "--out", tmp_path / "compare.html")
    assert text.status == 0 and "Median of 1 turns in bitstill.runtime; threads 1, batch 1." in text.out
    page = (tmp_path / "compare.html").read_text()
    assert "against latency" in page and "against bytes" in page
    found = json.loads(cli("compare", delivered, teacher, *options, "--json").out)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["student", "teacher"], "a folder named teacher is not beside a second teacher"
    for name, folder in (("student", delivered), ("teacher", teacher)):
        wanted = report(folder)
        assert rows[name]["metric"] == wanted["delivered"]["test"] and rows[name]["latency"] > 0
        assert rows[name]["file_bytes"] == (folder / "model.safetensors").stat().st_size


def test_compare_adds_the_teacher_that_all_had(cli, delivered, older):
    found = json.loads(cli("compare", delivered, older, "--turns", 0, "--json").out)
    assert [row["name"] for row in found["rows"]] == ["teacher", "student", "older"] and found["timed"] == ""
    wanted = report(delivered)["teacher"]
    assert (found["rows"][0]["metric"], found["rows"][0]["file_bytes"]) == (wanted["test"], wanted["file_bytes"])
    assert all(row["latency"] is None for row in found["rows"])


def test_what_cannot_be_compared(cli, delivered, older, tmp_path):
    assert "wanted each artifact once" in cli("compare", delivered, delivered, "--turns", 0).err
    changed = report(older) | {"task": "other"}
    (older / "report.json").write_text(json.dumps(changed))
    error = cli("compare", delivered, older, "--turns", 0).err
    assert "wanted artifacts of one task" in error and "accuracy on other" in error
    (older / "report.json").unlink()
    assert "wanted a report.json with a metric" in cli("compare", older, "--turns", 0).err
    assert cli("compare", tmp_path / "nowhere", "--turns", 0).status == 1


def test_bench_times_networks_and_draws_them(cli, delivered, tmp_path):
    options = ("--turns", 1, "--threads", 1, "--batch", 2)
    text = cli("bench", delivered, *options, "--out", tmp_path / "pages" / "bench.html")
    assert text.status == 0 and "torch, packed" in text.out and "(1.00)" in text.out
    assert "<svg" in (tmp_path / "pages" / "bench.html").read_text()
    found = json.loads(cli("bench", delivered, *options, "--json").out)
    kinds = ("bitstill.runtime", "torch, kernels", "torch, packed")
    assert [(row["kind"], list(row["points"])) for row in found["rows"]] == [(kind, ["2"]) for kind in kinds]
    missing = cli("bench", tmp_path / "nowhere")
    assert missing.status == 1 and "the folder of a network" in missing.err
