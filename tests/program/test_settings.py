"""Every key of a transformers config that affects the outputs is known; values that no program supports are refused."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import bitstill
from bitstill.errors import ArtifactError
from bitstill.program.encoders import check_settings
from bitstill.program.families import BERT, COMPUTED, FAMILIES, IN_SHAPES, IRRELEVANT, READ
from bitstill.program.heads import head_of
from bitstill.quant.rules import Binary, Compression

NO_KEYS = {"num_labels": "counts id2label", "_attn_implementation": "set when a model is loaded", "hidden_size": "another name"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_of_a_family_is_known(model_type):
    config_class = CONFIG_MAPPING[model_type]
    modeling = importlib.import_module(config_class.__module__.replace("configuration", "modeling"))
    source = Path(modeling.__file__).read_text(encoding="utf-8")
    read_by_model = set(re.findall(r"\bconfig\.(\w+)", source)) | set(re.findall(r"getattr\(config, \"(\w+)\"", source))
    assert {"pad_token_id", "chunk_size_feed_forward"} <= read_by_model  # found by the pattern
    assert not FAMILIES[model_type].unknown(set(config_class().to_dict()) | (read_by_model - NO_KEYS.keys()))


def test_no_key_is_of_two_kinds():
    kinds = [READ, IN_SHAPES, IRRELEVANT, frozenset(COMPUTED), BERT.keys.read]
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_usual_values_are_those_of_transformers(model_type):
    check_settings(json.loads(CONFIG_MAPPING[model_type]().to_json_string(use_diff=False)), FAMILIES[model_type])


@pytest.mark.parametrize(("key", "value"), [
    ("is_decoder", True), ("add_cross_attention", True), ("is_encoder_decoder", True), ("chunk_size_feed_forward", 4),
    ("position_embedding_type", "relative_key"), ("pruned_heads", {"0": [1]}), ("sliding_window", 8), ("is_decoder", "no"),
])  # fmt: skip
def test_another_value_is_refused_by_name(key, value):
    with pytest.raises(ArtifactError, match=f"config.json: {key}: wanted .*got {re.escape(repr(value))}"):
        check_settings({**BertConfig().to_dict(), key: value}, BERT)


def delivered(config, folder):
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    bitstill.prepare(network, Compression(weight=Binary(), targets=("*layer.*",)))
    bitstill.save(network, folder)
    return network


def test_the_runtime_and_exports_refuse_a_decoder(tmp_path):
    delivered(BertConfig(**SIZES, is_decoder=True), tmp_path / "a")
    with pytest.raises(ArtifactError, match="is_decoder: wanted False, got True"):
        bitstill.runtime.load(tmp_path / "a")
    for to in ("onnx", "openvino", "gguf"):
        with pytest.raises(ArtifactError, match="is_decoder"):
            bitstill.export(tmp_path / "a", tmp_path / to, to=to)


def test_a_key_that_the_family_does_not_read_changes_nothing(tmp_path):
    """DistilBERT's norms have a fixed epsilon, whatever its config says."""
    config = DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24, vocab_size=40, layer_norm_eps=0.1)
    network = delivered(config, tmp_path / "a")
    ids = torch.arange(5, 13).reshape(1, 8)
    with torch.inference_mode():
        expected = network(input_ids=ids).logits.numpy()
    assert abs(bitstill.runtime.load(tmp_path / "a")(input_ids=ids.numpy()) - expected).max() < 1e-5


def test_an_unknown_problem_type_is_refused():
    assert head_of({"id2label": {"0": "a", "1": "b"}}).scores == "softmax"
    for problem in ("token_classification", ["regression"]):
        with pytest.raises(ArtifactError, match="problem_type: wanted one of single_label_classification"):
            head_of({"problem_type": problem})
