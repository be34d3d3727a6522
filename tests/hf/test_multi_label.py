"""Texts with any number of labels: from CSV files to the delivered artifact and everything that reads it."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

import bitstill
import bitstill.hf
import bitstill.runtime
from bitstill.data import TextOptions
from bitstill.data.task import predict
from bitstill.deliver.evaluate import evaluate, task_of
from bitstill.errors import DataError
from bitstill.recipes import XTC, FineTuning
from bitstill.run.finetune import finetune

from . import tiny

TOPICS = {"film": "film", "sound": "music", "text": "script"}
OPTIONS = TextOptions(objective="multi-label", max_length=tiny.LIMIT)
EXAMPLE = Path(bitstill.__file__).parents[2] / "examples" / "serve.py"


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences that contain the words of their labels; some have none."""
    draw = random.Random(seed)
    neutral = [word for word in tiny.WORDS if word not in TOPICS.values()]
    found = []
    for _ in range(count):
        labels = [label for label in TOPICS if draw.random() < 0.4]
        words = [*draw.choices(neutral, k=draw.randint(2, 6)), *(TOPICS[label] for label in labels)]
        draw.shuffle(words)
        found.append((" ".join(words), ";".join(labels)))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topics")
    for seed, (part, count) in enumerate({"train": 120, "validation": 40, "test": 60}.items()):
        lines = ["text,label", *(f"{text},{labels}" for text, labels in rows(count, seed))]
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, saved, files):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    recipe = FineTuning(epochs=2, lr=3e-3, batch_size=24, validations=2)
    finetune(str(saved("bert", body=True)), "text", folder, recipe=recipe, settings=tiny.QUIET, data=files, text=OPTIONS)
    return folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, teacher, files):
    folder = tmp_path_factory.mktemp("student") / "student"
    recipe = XTC(bits=4, input=None, epochs=1, batch_size=24, validations=1)
    bitstill.compress(recipe, "text", {"teacher": teacher}, out=folder, settings=tiny.QUIET, data=files, text=OPTIONS)
    return folder


def test_every_figure_is_reported_and_measured_again(teacher, artifact, files):
    config = json.loads((teacher / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and list(config["id2label"].values()) == sorted(TOPICS)
    delivered = json.loads((artifact / "report.json").read_text())["delivered"]
    assert delivered["metric"] == "micro F1" and delivered["metrics"].keys() == {"micro F1", "macro F1", "exact match"}
    assert delivered["baseline"].keys() == delivered["metrics"].keys() and delivered["test"] == delivered["metrics"]["micro F1"]
    assert list(delivered["details"]["per label"]["rows"]) == sorted(TOPICS)
    assert evaluate(artifact, data=files)["value"] == delivered["test"]


def test_transformers_and_the_runtime_answer_with_a_probability_for_each_label(artifact, files):
    config = json.loads((artifact / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and list(config["id2label"].values()) == sorted(TOPICS)
    model, task = bitstill.load(artifact), task_of(artifact, files)
    expected = torch.sigmoid(predict(model, task, task.test)).numpy()
    runtime = bitstill.runtime.load(artifact)
    assert runtime.labels == tuple(sorted(TOPICS)) and runtime.head.scores == "sigmoid"
    inputs = {each.name: task.test.inputs[each.name].numpy() for each in runtime.program.inputs}
    probabilities = runtime.head.probabilities(runtime(**inputs))
    np.testing.assert_allclose(probabilities, expected, atol=2e-3)
    assert not np.allclose(probabilities.sum(-1), 1)

    classify = pipeline(
        "text-classification", AutoModelForSequenceClassification.from_pretrained(artifact), tokenizer=tiny.tokenizer()
    )
    answers = classify([text for text, _ in rows(5, 2)], top_k=None)
    for answer, row in zip(answers, expected, strict=False):
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(
            dict(zip(sorted(TOPICS), row, strict=True)), abs=2e-3
        )


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_exports_decide_alike(artifact, files, tmp_path, to):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[to])
    report = bitstill.export(artifact, tmp_path / "out", to=to, on_task=True, data=files)
    name, ours, theirs = report["compared"]["metric"]
    assert name == "micro F1" and ours == pytest.approx(theirs, abs=0.5) and report["compared"]["same_label"] > 0.99
    assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_the_documented_server_answers_with_a_probability_for_each_label(artifact):
    specification = importlib.util.spec_from_file_location("serve", EXAMPLE)
    serve = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(serve)
    answers = serve.Batcher(artifact).answer(["the film and its music", "never"])
    model, tokenizer = bitstill.load(artifact), tiny.tokenizer()
    with torch.inference_mode():
        expected = torch.sigmoid(
            model(**tokenizer(["the film and its music", "never"], padding=True, return_tensors="pt")).logits
        )
    np.testing.assert_allclose(answers, expected.numpy(), atol=2e-3)


def test_a_label_that_only_the_test_split_has_is_refused(artifact, files, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for part in ("train", "validation", "test"):
        text = (files / f"{part}.csv").read_text()
        (folder / f"{part}.csv").write_text(text + ("one more,sound;smell\n" if part == "test" else ""))
    with pytest.raises(DataError, match="text test: label: wanted labels 'film', 'sound', 'text', got 'smell'"):
        evaluate(artifact, data=folder)
