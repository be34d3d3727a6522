"""Pretrained models from folders: what is reported, what is refused, and the round trip through a config."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BertForPreTraining

from bitstill.artifact.writer import Storage
from bitstill.data.label_order import check_label_order
from bitstill.data.objectives import Classification, MeanStates
from bitstill.data.task import Split, Task
from bitstill.data.text import TextSplit
from bitstill.deliver.architecture import architecture_of, from_architecture
from bitstill.deliver.deliver import write_artifact
from bitstill.errors import ArtifactError, DataError, MatchError
from bitstill.hf.auto_classes import is_known
from bitstill.hf.configs import config_of, from_config
from bitstill.hf.pretrained import load_pretrained
from bitstill.hf.tokenize import tokenize
from bitstill.model.blocks import blocks, reduced
from bitstill.recipes import FineTuning
from bitstill.run.checks import check_model
from bitstill.run.models import resolve_models

from . import tiny

ALL = (*tiny.TEXT, "vit")


def task_of(name, task):
    return tiny.image_task() if name == "vit" else task


def inputs_of(name):
    return {"pixel_values": tiny.image_task().train.inputs["pixel_values"]} if name == "vit" else tiny.batch()


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.fixture
def copy(tmp_path, saved):
    """A copy of the tiny BERT's folder for a test to damage."""

    def make(config=None, weights=None) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(saved("bert"), folder)
        if config is not None:
            path = folder / "config.json"
            path.write_text(config if isinstance(config, str) else json.dumps({**json.loads(path.read_text()), **config}))
        if weights is not None:
            path = folder / "model.safetensors"
            save_file(weights(load_file(path)), path, {"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("name", ALL)
def test_a_whole_model_is_loaded_as_it_was_saved(saved, task, name):
    loaded = load_pretrained(str(saved(name)), task_of(name, task), "teacher")
    assert loaded.new == () == loaded.unused
    stock = tiny.model(name)
    assert {k: v.dtype for k, v in loaded.model.state_dict().items()} == {k: v.dtype for k, v in stock.state_dict().items()}
    torch.testing.assert_close(logits(loaded.model, inputs_of(name)), logits(stock, inputs_of(name)))


@pytest.mark.parametrize("name", ALL)
def test_a_body_gets_a_new_classifier_and_says_so(saved, task, name):
    loaded = load_pretrained(str(saved(name, body=True)), task_of(name, task), "student")
    assert loaded.new and not loaded.unused
    assert all("classifier" in key or "pooler" in key for key in loaded.new)
    body, stock = loaded.model.base_model.state_dict(), tiny.model(name).base_model.state_dict()
    assert all(torch.equal(body[key], tensor) for key, tensor in stock.items())
    named = dict(loaded.model.named_parameters())
    assert set(loaded.new) <= set(named) and all(torch.isfinite(parameter).all() for parameter in named.values())


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_a_language_model_loses_its_own_head(tmp_path, task, kind):
    kind(tiny.config("bert")).save_pretrained(tmp_path)
    loaded = load_pretrained(str(tmp_path), task, "student")
    assert {"classifier.bias", "classifier.weight"} <= set(loaded.new)
    assert loaded.unused and all(key.startswith("cls.") for key in loaded.unused)


def test_a_new_classifier_depends_on_the_seed_and_on_nothing_else(saved, task):
    """Otherwise a run would not reproduce its bytes, and an interrupted one could not be resumed."""
    heads = []
    for seed in (0, 0, 1):
        torch.rand(3)
        cast = resolve_models(FineTuning(), {"student": str(saved("bert", body=True))}, seed, task)
        heads.append(cast.networks["student"].classifier.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_loading_leaves_the_random_numbers_of_others_alone(saved, task):
    state = torch.random.get_rng_state()
    resolve_models(FineTuning(), {"student": str(saved("bert", body=True))}, 0, task)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_files_become_float32(tmp_path, task):
    tiny.model("bert").half().save_pretrained(tmp_path)
    model = load_pretrained(str(tmp_path), task, "teacher").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert config_of(model)["dtype"] == "float32"


def test_the_tasks_labels_are_written_into_the_config(saved, task):
    config = load_pretrained(str(saved("bert")), task, "teacher").model.config
    assert config.id2label == {0: "negative", 1: "positive"} and config.label2id == {"negative": 0, "positive": 1}
    values = tokenize(tiny.text_task(names=None), tiny.tokenizer())
    config = load_pretrained(str(saved("bert", num_labels=1)), values, "teacher").model.config
    assert config.num_labels == 1 and config.problem_type == "regression"
    assert Classification(2).head()["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize("name", ALL)
def test_a_classifier_of_other_classes_is_refused(saved, task, name):
    with pytest.raises(DataError, match=r"teacher '.*': wanted a model for \w+ \(2 classes; .*trained for other classes"):
        load_pretrained(str(saved(name, num_labels=3)), task_of(name, task), "teacher")


def test_a_classifier_is_refused_for_regression(saved):
    values = tokenize(tiny.text_task(names=None), tiny.tokenizer())
    with pytest.raises(DataError, match=r"wanted a model for tiny \(one value; classifier.bias \(1,\)\)"):
        load_pretrained(str(saved("bert")), values, "teacher")


def test_labels_in_another_order_are_refused(copy, task):
    """An NLI model whose class 0 is "contradiction" would teach the opposite of the labels."""
    folder = copy({"id2label": {0: "POSITIVE", 1: "NEGATIVE"}, "label2id": {"POSITIVE": 0, "NEGATIVE": 1}})
    with pytest.raises(DataError, match=r"labels in the order negative, positive, got positive, negative.*Reorder"):
        load_pretrained(str(folder), task, "teacher")


@pytest.mark.parametrize("names", [("positive", "negative"), ("positive", "other"), ("other", "NEGATIVE")])
def test_labels_in_another_order_are_refused_in_an_object_as_in_a_folder(task, names):
    network = tiny.model("bert", id2label=dict(enumerate(names)), label2id={name: n for n, name in enumerate(names)})
    with pytest.raises(DataError, match="teacher: wanted labels in the order negative, positive, got"):
        check_model("teacher", network, task)


def test_numbers_that_name_classes_are_compared_with_numbers_from_zero():
    numbered = Classification(3, ("LABEL_0", "LABEL_1", "LABEL_2"))
    for names in (("0", "1", "2"), ("a", "b", "c"), ("LABEL_0", "LABEL_1", "LABEL_2")):
        check_label_order(dict(enumerate(names)), numbered, "model")
    with pytest.raises(DataError, match="model: wanted labels in the order label_0, label_1, label_2, got 2, 1, 0"):
        check_label_order({0: "2", 1: "1", 2: "0"}, numbered, "model")
    check_label_order({0: "b"}, Classification(2, ("a", "b")), "another head, which its width tells")


def test_what_is_delivered_of_an_object_says_what_the_task_does(task, tmp_path):
    """Neither the object's own label names nor the problem that it was trained for."""
    network = tiny.model("bert", problem_type="multi_label_classification")
    write_artifact(tmp_path, network, task, Storage())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"} and config["problem_type"] is None


@pytest.mark.parametrize("names", [("Negative", "POSITIVE"), ("LABEL_0", "LABEL_1"), ("bad", "good")])
def test_the_same_labels_in_other_letters_or_names_of_no_meaning_are_taken(copy, task, names):
    folder = copy({"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}})
    model = load_pretrained(str(folder), task, "teacher").model
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_a_body_with_missing_weights_is_refused(copy, task):
    folder = copy(weights=lambda found: {key: value for key, value in found.items() if "layer.1." not in key})
    with pytest.raises(DataError, match=r"student.*wanted all weights below the classifier, got 16 missing.*layer\.1\."):
        load_pretrained(str(folder), task, "student")


def test_a_missing_pooler_is_new_and_not_refused(copy, task):
    folder = copy(weights=lambda found: {key: value for key, value in found.items() if "pooler" not in key})
    assert load_pretrained(str(folder), task, "student").new == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")


CONFIGS = {
    "another architecture": ({"model_type": "roberta"}, "all weights below the classifier, got 53 missing"),
    "more layers": ({"num_hidden_layers": 5}, "all weights below the classifier, got 32 missing"),
    "unknown": ({"model_type": "brand-new"}, "a pretrained model, got ValueError.*`brand-new`"),
    "none": ({"model_type": None}, "a pretrained model, got ValueError"),
    "broken": ("{", "a pretrained model, got OSError.*not a valid JSON file"),
    "a list": ("[]", "a pretrained model, got ValueError"),
    "a wide one": ({"hidden_size": "wide"}, "a pretrained model, got"),
    "odd classes": ({"id2label": {"x": "a"}, "label2id": {"a": "x"}}, "a pretrained model, got ValueError"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_do_not_fit_are_refused(copy, task, name):
    config, message = CONFIGS[name]
    with pytest.raises(DataError, match=message):
        load_pretrained(str(copy(config)), task, "student")


def test_a_body_of_another_width_is_not_blamed_on_its_classes(copy, task):
    with pytest.raises(DataError) as caught:
        load_pretrained(str(copy({"hidden_size": 32})), task, "student")
    assert "classes" not in caught.value.fix


@pytest.mark.parametrize("damage", ["cut", "not safetensors", "empty", "gone"])
def test_damaged_weights_are_one_clear_error(copy, task, damage):
    path = copy() / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": content[:-100], "not safetensors": b"abc" * 100, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"student '.*': wanted a pretrained model") as caught:
        load_pretrained(str(path.parent), task, "student")
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return print, ("EXECUTED",)


def test_a_pickle_with_code_is_refused_and_not_run(copy, task, capfd):
    folder = copy()
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Evil()}, folder / "pytorch_model.bin")
    try:
        with pytest.raises(DataError, match="a pretrained model"):
            load_pretrained(str(folder), task, "student")
    finally:
        assert "EXECUTED" not in capfd.readouterr().out


def with_code(folder: Path, kind: str) -> Path:
    path = folder / "config.json"
    code = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind, "auto_map": code}))
    classes = {"Config": "BertConfig", "Model": "BertForSequenceClassification"}
    lines = [f"class {name}(transformers.{base}): pass" for name, base in classes.items()]
    (folder / "code.py").write_text("\n".join(["print('EXECUTED')", "import transformers", *lines, ""]))
    return folder


def test_code_of_a_repository_is_never_run_nor_offered_to_be_run(copy, task, capfd, monkeypatch):
    """At a terminal, transformers would ask "Do you wish to run the custom code?" and run it on a y."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(DataError, match="a pretrained model"):
        load_pretrained(str(with_code(copy(), "brand-new")), task, "student")
    printed = capfd.readouterr()
    assert "EXECUTED" not in printed.out and "Do you wish" not in printed.out + printed.err


def test_a_known_architecture_needs_no_code_of_its_repository(copy, task, capfd):
    loaded = load_pretrained(str(with_code(copy(), "bert")), task, "student")
    assert type(loaded.model).__module__ == "transformers.models.bert.modeling_bert"
    assert "EXECUTED" not in capfd.readouterr().out


@pytest.mark.parametrize("source", ["{}/nowhere", "no-such-model", "nobody/no-such-model"])
def test_an_unknown_source_is_refused(tmp_path, task, source):
    with pytest.raises(DataError, match=r"teacher '.*': wanted a pretrained model, got OSError.*Give the folder"):
        load_pretrained(source.format(tmp_path), task, "teacher")


def test_models_for_other_inputs_are_refused(saved, task):
    with pytest.raises(DataError, match=r"wanted an encoder for text classification, got vit"):
        load_pretrained(str(saved("vit")), task, "student")
    with pytest.raises(DataError, match=r"wanted an encoder for image classification, got bert"):
        load_pretrained(str(saved("bert")), tiny.image_task(), "student")


def test_nothing_is_printed_while_a_model_is_loaded_and_bars_come_back(saved, task, capfd):
    from transformers.utils import logging

    logging.enable_progress_bar()
    level = logging.get_verbosity()
    load_pretrained(str(saved("bert", body=True)), task, "student")
    assert logging.is_progress_bar_enabled() and logging.get_verbosity() == level
    logging.disable_progress_bar()
    load_pretrained(str(saved("bert", body=True)), task, "student")
    assert not logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


def test_gpt2_is_loaded_and_has_blocks(saved, task):
    loaded = load_pretrained(str(saved("gpt2")), task, "student")
    assert loaded.new == () and blocks(loaded.model).name == "transformer.h"
    torch.testing.assert_close(logits(loaded.model, tiny.batch()), logits(tiny.model("gpt2"), tiny.batch()))


def test_albert_is_loaded_but_has_no_layers_to_choose(saved, task):
    loaded = load_pretrained(str(saved("albert")), task, "student")
    torch.testing.assert_close(logits(loaded.model, tiny.batch()), logits(tiny.model("albert"), tiny.batch()))
    with pytest.raises(MatchError, match="ALBERT"):
        blocks(loaded.model)


@pytest.mark.parametrize("name", [*ALL, "albert", "gpt2"])
def test_a_config_rebuilds_its_model(saved, task, name):
    model = load_pretrained(str(saved(name)), task_of(name, task), "student").model
    config = json.loads(json.dumps(config_of(model)))
    again = from_config({**config, "quantization_config": {"quant_method": "bitstill"}, "task": "tiny"})
    assert type(again) is type(model) and "quantization_config" not in again.config.to_dict()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(again, inputs_of(name)), logits(model, inputs_of(name)))
    if name != "vit":
        assert again.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("name", ["bert", "distilbert", "deberta-v3", "vit"])
def test_a_model_that_lost_layers_is_rebuilt_without_them(name):
    student = reduced(tiny.model(name), [0, 2])
    again = from_config(config_of(student))
    again.load_state_dict(student.state_dict())
    assert len(blocks(again)) == 2
    torch.testing.assert_close(logits(again, inputs_of(name)), logits(student, inputs_of(name)))


def test_config_of_is_for_classes_of_transformers_alone():
    class Own(type(tiny.model("bert"))):
        pass

    assert config_of(torch.nn.Linear(2, 2)) is None
    assert config_of(Own(tiny.config("bert"))) is None


def test_architectures_are_told_apart(zoo):
    bert = tiny.model("bert")
    assert architecture_of(bert) == config_of(bert)
    assert "model_type" not in architecture_of(zoo)
    assert type(from_architecture(architecture_of(bert))) is type(bert)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": None}, {"architectures": ["Nonsense"]}, {"architectures": ["BertTokenizer"]},
        {"architectures": ["pipeline"]}, {"hidden_size": 17}, {"hidden_size": "wide"},
    ],
)  # fmt: skip
def test_configs_that_rebuild_nothing_are_refused(change):
    wanted = "a classifier, or a model without a head, that transformers knows"
    with pytest.raises(ArtifactError, match=rf"config.json: wanted {wanted}, got \w+"):
        from_config({**config_of(tiny.model("bert")), **change})


@pytest.mark.parametrize("words", [58, 38])
def test_every_text_is_checked_against_what_the_model_can_read(words):
    """The first texts are short, one exceeds the 40 positions, and the tokenizer does not know that limit."""
    found = tiny.text_task(8, max_length=128)
    long = [*found.train.texts[0][:7], " ".join(["film"] * words)]
    task = tokenize(replace(found, train=TextSplit((long,), found.train.labels)), tiny.tokenizer(limit=10**30))
    with pytest.raises(DataError):
        check_model("student", tiny.model("roberta"), task)


def test_a_text_as_long_as_the_model_can_read_is_taken():
    found = tiny.text_task(8, max_length=128)
    long = [*found.train.texts[0][:7], " ".join(["film"] * 38)]
    task = tokenize(replace(found, train=TextSplit((long,), found.train.labels)), tiny.tokenizer(limit=10**30))
    check_model("student", tiny.model("bert"), task)


def test_an_objective_without_a_head_loads_the_encoder_of_a_classifier(saved, task):
    part = Split(task.test.inputs, torch.zeros(len(task.test), 16))
    corpus = Task("corpus", part, part, part, MeanStates(), task.forward)
    loaded = load_pretrained(str(saved("bert")), corpus, "teacher")
    assert type(loaded.model).__name__ == "BertModel" and loaded.unused == ("classifier.bias", "classifier.weight")


def test_a_kind_of_head_that_transformers_has_not_is_refused(saved, task):
    class Odd(Classification):
        head_kind = "four-legged"

    with pytest.raises(DataError, match=r"wanted a head of transformers for text, got head_kind 'four-legged'.*sample"):
        load_pretrained(str(saved("bert")), replace(task, objective=Odd(2)), "teacher")


def test_one_of_several_classes_of_a_family_is_known():
    assert is_known("DeiTForImageClassificationWithTeacher") and not is_known("DeiTFor")
