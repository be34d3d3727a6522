"""Whole networks: every encoder family and every bitstill network, exported as a user would."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import bitstill
from bitstill.data.networks import build
from bitstill.deliver import export as exporting
from bitstill.deliver import parity
from bitstill.errors import ArtifactError, SpecError
from bitstill.exporters.onnx import initializers
from bitstill.program.from_artifact import program_of
from bitstill.quant.rules import Binary, Compression, QuantizeAttention, QuantizeInput, Uniform
from tests.hf import tiny

BYTES = QuantizeInput()
FAMILIES = ("bert", "roberta", "distilbert", "electra")
NETWORKS = ("digits-student", "digits-teacher", "resnet-20", "res8-narrow", "polino-student-3")


def encoder_artifact(kind, folder, input=BYTES, **config):
    model = tiny.model(kind, **config).eval()
    words = Compression(weight=Binary(), targets=("*word_embeddings",))
    bitstill.prepare(model, [Compression(weight=Binary(), targets=("*.layer.*",), input=input), words])
    bitstill.save(model, folder)
    return model


@pytest.mark.parametrize("input", [None, QuantizeInput()], ids=["float", "tokens"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_an_encoder_says_the_same(kind, input, tmp_path):
    encoder_artifact(kind, tmp_path / "a", input)
    report = bitstill.export(tmp_path / "a", tmp_path / "o")
    compared = report["compared"]
    assert compared["largest_difference"] <= (1e-4 if input is None else 0.05) * compared["largest_output"]
    assert report == json.loads((tmp_path / "o" / "export.json").read_text())
    assert report["file_bytes"] == (tmp_path / "o" / "model.onnx").stat().st_size
    assert set(report["arithmetic"].values()) == {"float", "packed rows"} | ({"integer"} if input else set())
    assert "quantization_config" not in json.loads((tmp_path / "o" / "config.json").read_text())


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_changes_nothing(kind, opset, tmp_path):
    encoder_artifact(kind, tmp_path / "a")
    bitstill.export(tmp_path / "a", tmp_path / "o", opset=opset)
    session = onnxruntime.InferenceSession(tmp_path / "o" / "model.onnx", providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(5, 50, (2, 7))
    names = [given.name for given in session.get_inputs()]

    def run(ids, mask):
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return session.run(None, {name: values[name] for name in names})[0]

    alone = run(ids, np.ones_like(ids))
    wide = np.pad(ids, ((0, 0), (0, 4)), constant_values=0 if kind != "roberta" else tiny.model(kind).config.pad_token_id)
    padded = run(wide, np.pad(np.ones_like(ids), ((0, 0), (0, 4))))
    np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_convolutional_network_says_the_same(name, bits, tmp_path):
    network_artifact(name, bits, tmp_path / "a")
    compared = bitstill.export(tmp_path / "a", tmp_path / "o")["compared"]
    assert compared["samples"] == parity.SAMPLES + 1 and compared["same_label"] == 1.0
    assert compared["largest_difference"] <= 1e-4 * compared["largest_output"]


def network_artifact(name, bits, folder):
    network = build(name)
    with torch.no_grad():  # running statistics unlike the initial ones
        for module in network.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    bitstill.prepare(network, Compression(weight=Binary() if bits == 1 else Uniform(bits)))
    bitstill.save(network.eval(), folder)


def test_the_file_is_hardly_larger_than_the_artifact(tmp_path):
    encoder_artifact("bert", tmp_path / "a", hidden_size=128, intermediate_size=512, vocab_size=5000, initializer_range=0.02)
    report = bitstill.export(tmp_path / "a", tmp_path / "o")
    assert report["file_bytes"] < 1.1 * report["artifact_bytes"]


def test_a_change_of_the_rule_for_inputs_is_said(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    report = bitstill.export(tmp_path / "a", tmp_path / "o", activations="per-tensor")
    assert report["activations"] == "per-tensor" and report["compared"]["largest_difference"] > 0
    assert report["inputs_quantized"] == [{"bits": 8, "symmetric": False, "per": "tensor", "range": "dynamic"}]
    plain = bitstill.export(tmp_path / "a", tmp_path / "p")
    assert plain["inputs_quantized"] == [{"bits": 8, "symmetric": True, "per": "token", "range": "dynamic"}]


def test_pairs_of_operators_instead_of_integer_products(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    report = bitstill.export(tmp_path / "a", tmp_path / "o", activations="qdq")
    assert list(report["arithmetic"].values()).count("dequantized") == 18 and report["activations"] == "qdq"
    plain = bitstill.export(tmp_path / "a", tmp_path / "p", activations="per-tensor")
    assert report["inputs_quantized"] == plain["inputs_quantized"]
    assert report["compared"]["largest_difference"] == pytest.approx(plain["compared"]["largest_difference"], rel=1e-3)


def test_a_float_state_dict_for_anyone(tmp_path):
    model = encoder_artifact("bert", tmp_path / "a", None)
    report = bitstill.export(tmp_path / "a", tmp_path / "t", to="torch")
    assert report["inputs_no_longer_quantized"] == []
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "t").eval()
    ids = torch.randint(5, 50, (2, 6))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    encoder_artifact("bert", tmp_path / "b")
    assert len(bitstill.export(tmp_path / "b", tmp_path / "u", to="torch")["inputs_no_longer_quantized"]) == 18


@pytest.mark.parametrize("attention", [None, QuantizeAttention()])
def test_a_split_encoder_of_half_the_width(attention, tmp_path):
    data, teacher = tiny.write_csv(tmp_path / "data"), str(tiny.saved(tmp_path / "teacher", "bert"))
    recipe = bitstill.recipes.BinaryBERT(steps=1, validations=1, batch_size=8, teacher_epochs=0.1, attention=attention)
    text = bitstill.data.TextOptions(max_length=tiny.LIMIT)
    bitstill.compress(recipe, "text", {"teacher": teacher}, data=data, text=text, settings=tiny.QUIET, out=tmp_path / "a")
    floats = bitstill.export(tmp_path / "a", tmp_path / "t", to="torch")
    assert floats["narrower_than_config"] and len(floats["attention_no_longer_quantized"]) == (3 if attention else 0)
    assert "bitstill_attention" not in json.loads((tmp_path / "t" / "config.json").read_text())
    report = bitstill.export(tmp_path / "a", tmp_path / "o")
    assert list(report["arithmetic"].values()).count("integer") == 18


def test_a_network_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    encoder_artifact("bert", tmp_path / "a")
    real = initializers.row_numbers
    monkeypatch.setattr(initializers, "row_numbers", lambda *arguments: 1.5 * real(*arguments))
    with pytest.raises(ArtifactError, match=r"outputs that differ by at most 0.05 of the largest.*Nothing was written"):
        bitstill.export(tmp_path / "a", tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_ranges_that_rows_do_not_stand_for_are_refused_and_can_be_exchanged(tmp_path):
    network = build("digits-student")
    bitstill.prepare(network, Compression(weight=Binary(), input=QuantizeInput(per="token")))
    bitstill.save(network.eval(), tmp_path / "lines")
    encoder_artifact("bert", tmp_path / "texts", QuantizeInput(per="sample"))
    for name, message in (
        ("lines", r"features.0: wanted inputs quantized per sample or tensor, got per token. Train it with per='sample'"),
        ("texts", r"layer.0.attention.self.query: wanted inputs quantized per token or tensor, got per sample"),
    ):
        with pytest.raises(ArtifactError, match=message):
            bitstill.export(tmp_path / name, tmp_path / "o")
        bitstill.export(tmp_path / name, tmp_path / f"{name}-onnx", activations="per-tensor")


def test_what_cannot_be_exported(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for options, message in (
        ({"to": "onyx"}, "a known target, got 'onyx'. Did you mean 'onnx'"),
        ({"activations": "tensor"}, "activations that onnx has.*Did you mean 'per-tensor'"),
        ({"out": tmp_path / "full"}, "a new or an empty folder"),
    ):
        with pytest.raises(SpecError, match=message):
            bitstill.export(tmp_path / "a", **{"out": tmp_path / "o", **options})
    archive = bitstill.read(tmp_path / "a")
    for change, message in (
        ({"model_type": "deberta-v2"}, "an encoder of bert, roberta, electra, distilbert, got deberta-v2"),
        ({"architectures": ["BertForMaskedLM"]}, "a model for sequence classification"),
        ({"hidden_act": "silu"}, "an activation of relu.*got silu"),
        ({"bitstill_attention": {"a": {"products": "float"}}}, "wanted rules for products and probabilities"),
    ):
        with pytest.raises(ArtifactError, match=message):
            program_of(replace(archive, config={**archive.config, **change}))
    other = torch.nn.Sequential(torch.nn.Linear(4, 2))
    bitstill.prepare(other, Compression(weight=Binary()))
    bitstill.save(other, tmp_path / "mine")
    with pytest.raises(ArtifactError, match="an encoder of transformers, or one of conv-net, resnet, res8"):
        bitstill.export(tmp_path / "mine", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_newer_operator_set_says_the_same(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    report = bitstill.export(tmp_path / "a", tmp_path / "o", opset=23)
    written = onnx.load(tmp_path / "o" / "model.onnx")
    assert written.opset_import[0].version == report["opset"] == 23
    assert sum(node.op_type == "Attention" for node in written.graph.node) == 3
    for opset in (0, 13, 20, 999):
        with pytest.raises(SpecError, match=f"opset: wanted an opset from 21 to .*, got {opset}"):
            bitstill.export(tmp_path / "a", tmp_path / "p", opset=opset)
    assert not (tmp_path / "p").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    encoder_artifact("bert", tmp_path / "a")

    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exporting, "write_file", full)
    with pytest.raises(ArtifactError, match="wanted a folder that can be written, got No space left"):
        bitstill.export(tmp_path / "a", tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
