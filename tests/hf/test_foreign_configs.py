"""Untrusted configs: nothing in them makes a library fetch code, and settings that transformers would ignore are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.integrations import hub_kernels

import bitstill
from bitstill.artifact.config_keys import CODE, without_code
from bitstill.errors import ArtifactError, DataError
from bitstill.hf.configs import config_of, from_config
from bitstill.hf.pretrained import load_encoder, load_float_classifier, load_pretrained
from bitstill.hf.tokenize import Tokenizer, load_tokenizer
from bitstill.quant.rules import Binary, Compression
from tests.signing import edit_signed

from . import tiny

KERNEL = {"attn_implementation": "stranger/kernel", "auto_map": {"AutoModel": "stranger/code--model.Model"}}


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    """Makes fetching a kernel an error that our code does not catch."""

    def fetch(*arguments, **settings):
        raise AssertionError(f"fetched {arguments}")

    monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", fetch)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)


@pytest.fixture
def stranger(saved, tmp_path):
    """The tiny BERT's folder, and a function that changes its config."""
    folder = tmp_path / "stranger"
    shutil.copytree(saved("bert"), folder)

    def change(**keys):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return str(folder)

    return change


def test_the_test_notices_a_kernel(stranger):
    with pytest.raises(AssertionError, match="fetched"):
        AutoModelForSequenceClassification.from_pretrained(stranger(**KERNEL))


def test_a_kernel_named_in_a_config_is_not_fetched_and_not_written(stranger, task):
    folder = stranger(**KERNEL)
    models = [
        load_pretrained(folder, task, "student").model,
        load_encoder(folder, "student").model,
        load_float_classifier(folder),
    ]
    for model in models:
        assert not CODE & config_of(model).keys()
    torch.testing.assert_close(models[0](**tiny.batch()).logits, models[2](**tiny.batch()).logits)


def test_an_artifact_that_names_one_does_not_fetch_it(tmp_path):
    model = tiny.model("bert")
    bitstill.prepare(model, Compression(weight=Binary(), targets=("*.layer.*",)))
    bitstill.save(model, tmp_path / "a")
    edit_signed(tmp_path / "a", config=lambda content: content.update(KERNEL))
    assert bitstill.load(tmp_path / "a").config._attn_implementation == "bitstill"
    with pytest.raises(ArtifactError, match="attn_implementation: wanted attention of transformers itself, got stranger"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    bitstill.export(tmp_path / "a", tmp_path / "b", to="torch")
    assert not CODE & json.loads((tmp_path / "b" / "config.json").read_text()).keys()


def test_a_config_within_a_config_is_cleaned_too():
    assert without_code({"a": 1, **KERNEL, "text_config": {"b": 2, **KERNEL}}) == {"a": 1, "text_config": {"b": 2}}


def test_a_tokenizer_is_saved_without_code(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": ["stranger/code--tokenizer.Tokenizer", None]}
    Tokenizer(tokenizer).save(tmp_path)
    assert not CODE & json.loads((tmp_path / "tokenizer_config.json").read_text()).keys()
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(("keys", "message"), [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config: wanted a model in float, got .*gptq"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type: wanted positions that transformers computes"),
])  # fmt: skip
def test_what_transformers_would_not_heed(keys, message, stranger, task):
    with pytest.raises(DataError, match=message):
        load_pretrained(stranger(**keys), task, "student")


def test_from_config_ignores_an_attention_of_strangers():
    config = config_of(tiny.model("bert"))
    assert from_config({**config, "_attn_implementation": "stranger/kernel"}).config._attn_implementation == "bitstill"
