"""Encoders without a head: a vector for each token, or for each text."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel

import bitstill
import bitstill.runtime
from bitstill.artifact.reader import read_config
from bitstill.errors import ArtifactError, SpecError
from bitstill.program.from_artifact import program_of
from bitstill.program.samples import random_inputs
from bitstill.quant.rules import Binary, Compression
from tests.exporters.test_networks import BYTES, FAMILIES, encoder_artifact
from tests.hf import tiny


def bare_artifact(kind, folder, input=BYTES):
    encoder = tiny.model(kind).base_model.eval()
    words = Compression(weight=Binary(), targets=("*word_embeddings",))
    bitstill.prepare(encoder, [Compression(weight=Binary(), targets=("*.layer.*",), input=input), words])
    bitstill.save(encoder, folder)


def in_torch(folder, values):
    with torch.inference_mode():
        return bitstill.load(folder)(**{name: torch.from_numpy(value) for name, value in values.items()})[0].numpy()


@pytest.mark.parametrize("input", [None, BYTES], ids=["float", "tokens"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_each_token_has_its_vector_and_padding_has_none(kind, input, engine, tmp_path):
    bare_artifact(kind, tmp_path / "a", input)
    values = random_inputs(read_config(tmp_path / "a"), 5, 11, shortest=1)
    found, wanted = bitstill.runtime.load(tmp_path / "a")(**values), in_torch(tmp_path / "a", values)
    seen = values["attention_mask"] == 1
    assert found.shape == (5, 11, 16) and found.dtype == np.float32 and not found[~seen].any() and (~seen).any()
    np.testing.assert_allclose(found[seen], wanted[seen], rtol=0, atol=(1e-4 if input is None else 0.05) * np.abs(wanted).max())


def test_each_text_has_the_mean_or_the_first_of_its_tokens(engine, tmp_path):
    bare_artifact("bert", tmp_path / "a", None)
    values = random_inputs(read_config(tmp_path / "a"), 4, 9, shortest=2)
    tokens, mask = in_torch(tmp_path / "a", values), values["attention_mask"]
    mean = bitstill.runtime.load(tmp_path / "a", pooling="mean")(**values)
    np.testing.assert_allclose(mean, np.stack([x[m == 1].mean(0) for x, m in zip(tokens, mask, strict=True)]), atol=1e-5)
    first = bitstill.runtime.load(tmp_path / "a", pooling="first")(**values)
    np.testing.assert_allclose(first, tokens[:, 0], atol=1e-5)
    assert mean.dtype == first.dtype == np.float32
    values["attention_mask"][:] = 1
    values["attention_mask"][1, 3:5] = 0  # masked in the middle
    values["attention_mask"][2, :3] = 0  # padding on the left
    left = bitstill.runtime.load(tmp_path / "a", pooling="first")(**values)
    np.testing.assert_allclose(left[2], in_torch(tmp_path / "a", values)[2, 3], atol=1e-5)
    hidden = bitstill.runtime.load(tmp_path / "a", pooling="mean")(**values)
    wanted = in_torch(tmp_path / "a", values)[1, [0, 1, 2, 5, 6, 7, 8]].mean(0)
    np.testing.assert_allclose(hidden[1], wanted, atol=1e-5)


@pytest.mark.parametrize(("pooling", "shape"), [(None, (0, 6, 16)), ("mean", (0, 16)), ("first", (0, 16))])
def test_no_texts_have_no_vectors(pooling, shape, engine, tmp_path):
    bare_artifact("bert", tmp_path / "a")
    assert bitstill.runtime.load(tmp_path / "a", pooling=pooling)(input_ids=np.ones((0, 6), int)).shape == shape


def test_what_cannot_be_pooled_is_refused(tmp_path):
    encoder_artifact("bert", tmp_path / "classifier")
    with pytest.raises(SpecError, match="pooling: wanted an encoder without a head, to pool, got logits"):
        bitstill.runtime.load(tmp_path / "classifier", pooling="mean")
    with pytest.raises(SpecError, match=r"wanted a known pooling, got 'meen'. Did you mean 'mean'"):
        bitstill.runtime.load(tmp_path / "classifier", pooling="meen")
    bare_artifact("bert", tmp_path / "a")
    archive = bitstill.read(tmp_path / "a")
    archive.config["architectures"] = ["BertForMaskedLM"]
    with pytest.raises(ArtifactError, match="wanted a model for sequence classification, or a BertModel, got"):
        program_of(archive)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_they_can_be_exported(kind, to, tmp_path):
    bare_artifact(kind, tmp_path / "a", None)
    report = bitstill.export(tmp_path / "a", tmp_path / "o", to=to)
    compared = report["compared"]
    assert compared["largest_difference"] <= 1e-4 * compared["largest_output"]
    if to == "onnx":
        (made,) = onnxruntime.InferenceSession(tmp_path / "o" / "model.onnx").get_outputs()
        assert made.name == "last_hidden_state" and made.shape == ["batch", "length", 16]


def test_transformers_makes_up_no_pooler(tmp_path):
    bare_artifact("roberta", tmp_path / "a")
    loaded = AutoModel.from_pretrained(tmp_path / "a")
    assert loaded.pooler is None
    values = random_inputs(read_config(tmp_path / "a"), 2, 6)
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    with torch.inference_mode():
        assert torch.equal(loaded(**tensors)[0], bitstill.load(tmp_path / "a")(**tensors)[0])
