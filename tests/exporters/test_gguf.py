"""GGUF files: gguf's own reader finds the trained weights in them."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.errors import ArtifactError, SpecError
from bitstill.exporters.ggml import TYPES, block_type, packed_blocks
from bitstill.exporters.gguf import ROUNDING, gguf_types
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import Binary, Compression, LearnedStep, Points, Prune, SplitBinary, Ternary, Uniform
from tests.hf import tiny
from tests.signing import edit_signed

WIDE = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.05}
GRANULARITIES = (PerTensor(), PerChannel(), PerGroup(32), PerGroup(128), PerGroup(256))


def archive_of(width, rule, folder, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(width, 3))
    bitstill.prepare(network, rule)
    bitstill.save(network.eval(), folder)
    return bitstill.read(folder)


def decoded(kind, blocks):
    """Decode blocks with gguf's own reader; bit by bit for the type that it does not support."""
    if kind.name != "Q1_0":
        return dequantize(blocks, gguf.GGMLQuantizationType[kind.name])
    found = []
    for block in blocks.reshape(-1, 18):
        scale = float(block[:2].copy().view(np.float16)[0])
        found += [scale if block[2 + place // 8] >> place % 8 & 1 else -scale for place in range(128)]
    return np.array(found, np.float32).reshape(len(blocks), -1)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["binary", "ternary", "symmetric", "affine", "pruned"]),
    bits=st.integers(2, 8),
    granularity=st.sampled_from(GRANULARITIES),
    width=st.sampled_from([32, 64, 128, 256, 384, 768]),
    seed=st.integers(0, 9),
)
def test_blocks_say_the_trained_weights(tmp_path_factory, kind, bits, granularity, width, seed):
    prune = Prune(0.5) if kind == "pruned" else None
    quantizer = {
        "binary": Binary(granularity), "ternary": Ternary(granularity), "pruned": Ternary(granularity),
        "symmetric": Uniform(bits, symmetric=True, granularity=granularity),
        "affine": Uniform(min(bits, 4), granularity=granularity),
    }[kind]  # fmt: skip
    rule = Compression(weight=quantizer, prune=prune)
    archive = archive_of(width, rule, tmp_path_factory.mktemp("g") / "a", seed)
    layer = archive.layers["0"]
    try:
        found, blocks = packed_blocks(archive, layer)
    except ArtifactError:
        sizes = [each.size for each in TYPES]
        assert width % min(sizes) or layer.grid.size % min(sizes) or (kind == "binary" and width % 32)
        return
    assert blocks.shape == (3, width // found.size * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[found.name]][1])
    wanted = archive.weight("0")
    np.testing.assert_allclose(decoded(found, blocks), wanted, rtol=0, atol=ROUNDING * np.abs(wanted).max())
    if kind == "binary":
        assert found.name == ("Q1_0" if width % 128 == 0 and layer.grid.size % 128 == 0 else "Q4_0")


@pytest.mark.parametrize(("rule", "width", "message"), [
    (Compression(weight=SplitBinary()), 128, "weights of one plane for gguf, got 2 planes"),
    (Compression(weight=Points(4)), 128, "evenly spaced levels for gguf, got learned points"),
    (Compression(weight=Uniform(8)), 128, "levels that a block of ggml can say for gguf, got 256 levels with an offset"),
    (Compression(weight=Binary()), 100, "whole blocks of 32 for gguf, got rows of 100"),
    (Compression(weight=Uniform(4, symmetric=True, granularity=PerGroup(24))), 96, "blocks of 32 for gguf, got groups of 24"),
    (Compression(weight=Uniform(4, symmetric=True, granularity=Bucket(64))), 96, "in a row for gguf, got flat"),
])  # fmt: skip
def test_what_no_block_can_say_is_named(rule, width, message, tmp_path):
    archive = archive_of(width, rule, tmp_path / "a")
    with pytest.raises(ArtifactError, match=f"^0: wanted .*{message}"):
        block_type(archive.layers["0"])


def test_learned_steps_fit(tmp_path):
    archive = archive_of(64, Compression(weight=LearnedStep(4)), tmp_path / "a")
    kind, blocks = packed_blocks(archive, archive.layers["0"])
    wanted = archive.weight("0")
    np.testing.assert_allclose(decoded(kind, blocks), wanted, atol=ROUNDING * np.abs(wanted).max())


def encoder(folder, weight=None, **config):
    """A BERT with its tokenizer, and its folder."""
    model = tiny.model("bert", **{**WIDE, **config}).eval()
    words = ("*word_embeddings", "*token_type_embeddings")
    bitstill.prepare(model, Compression(weight=weight or Binary(), targets=("*.layer.*", *words)))
    bitstill.save(model, folder, tokenizer=tiny.tokenizer())
    return folder


def test_a_file_holds_the_whole_network(tmp_path):
    archive = bitstill.read(encoder(tmp_path / "a"))
    report = bitstill.export(tmp_path / "a", tmp_path / "o", to="gguf")
    assert report == json.loads((tmp_path / "o" / "export.json").read_text())
    reader = gguf.GGUFReader(tmp_path / "o" / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 3)
    for name, tensor in archive.leftovers.items():
        layer, _, leaf = name.removeprefix("bert.").rpartition(".")
        ours = {"classifier": "cls.output", "pooler.dense": "cls"}.get(layer) or known.get_name(layer)
        np.testing.assert_array_equal(tensors[f"{ours}.{leaf}"].data, tensor, err_msg=name)
    assert report["block_types"] == dict.fromkeys(set(archive.layers) - {"bert.embeddings.token_type_embeddings"}, "Q1_0")
    assert tensors["token_types.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert len(tensors) == len(archive.leftovers) + len(archive.layers)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    wanted = {
        "general.architecture": "bert", "bert.block_count": 3, "bert.embedding_length": 128, "bert.attention.causal": False,
        "bert.feed_forward_length": 256, "bert.attention.head_count": 2, "bert.pooling_type": 4,
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.normalizer.lowercase": True, "bert.classifier.output_labels": ["LABEL_0", "LABEL_1"],
    }  # fmt: skip
    assert {name: fields[name] for name in wanted} == wanted
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[2] == "[CLS]" and tokens[5] == "\u2581the" and len(tokens) == len(tiny.VOCABULARY)


@pytest.mark.parametrize(("weight", "kind"), [
    (Ternary(), "Q4_0"), (Uniform(4), "Q4_1"), (Uniform(8, symmetric=True), "Q8_0"), (Uniform(2, symmetric=True), "Q4_0"),
])  # fmt: skip
def test_other_weights(weight, kind, tmp_path):
    report = bitstill.export(encoder(tmp_path / "a", weight), tmp_path / "o", to="gguf")
    assert kind in report["block_types"].values() and report["largest_change_of_a_weight"] <= ROUNDING


@pytest.mark.parametrize(("settings", "message"), [
    ({"architectures": ["RobertaForSequenceClassification"]}, "wanted a BertForSequenceClassification"),
    ({"hidden_act": "relu"}, "wanted the activation gelu for gguf, got relu"),
    ({"bitstill_resized": {"a": {}}}, "bitstill_resized: wanted a whole network"),
    ({"bitstill_attention": {"a": {}}}, "bitstill_attention: wanted a whole network"),
])  # fmt: skip
def test_what_llama_cpp_cannot_run(settings, message, tmp_path):
    archive = bitstill.read(encoder(tmp_path / "a"))
    with pytest.raises(ArtifactError, match=message):
        gguf_types(replace(archive, config={**archive.config, **settings}))
    edit_signed(tmp_path / "a", config=lambda config: config.update(settings))
    with pytest.raises(ArtifactError, match=message):
        bitstill.export(tmp_path / "a", tmp_path / "o", to="gguf")
    assert not (tmp_path / "o").exists() and [path.name for path in tmp_path.iterdir()] == ["a"]


SEQUENCE = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]}
BERT_NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
ADDED = {
    "id": 5,
    "content": "the",
    "special": False,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
}


def with_tokenizer(folder, *changes):
    """A delivered encoder whose tokenizer.json has other values at these paths."""
    path = encoder(folder) / "tokenizer.json"
    changed = json.loads(path.read_text())
    for place, value in changes:
        *outer, last = place.split(".")
        section = changed
        for key in outer:
            section = section[key]
        section[last] = value
    path.write_text(json.dumps(changed))
    edit_signed(folder)
    return folder


@pytest.mark.parametrize(("place", "value", "message"), [
    ("model.type", "Unigram", "model.type: wanted 'WordPiece' for gguf, got 'Unigram'"),
    ("model.unk_token", "<unk>", "model.unk_token"),
    ("model.continuing_subword_prefix", "@@", "model.continuing_subword_prefix"),
    ("model.max_input_chars_per_word", 10, "model.max_input_chars_per_word: wanted 100 for gguf, got 10"),
    ("normalizer", None, "wanted a BertNormalizer.*got none"),
    ("normalizer", SEQUENCE, "wanted a BertNormalizer.*got NFD, Lowercase, StripAccents"),
    ("normalizer.handle_chinese_chars", False, "normalizer.handle_chinese_chars: wanted true for gguf, got False"),
    ("normalizer.clean_text", False, "normalizer.clean_text"),
    ("normalizer.strip_accents", False, "wanted accents that are stripped for gguf"),
    ("normalizer.lowercase", False, "wanted accents that are stripped for gguf"),
    ("pre_tokenizer", {"type": "Whitespace"}, "wanted a BertPreTokenizer for gguf, got Whitespace"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "BertPreTokenizer"}, {"type": "Digits"}]}, "Digits"),
    ("post_processor", None, "post_processor: wanted .CLS. text .SEP."),
    ("post_processor", {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[PAD]", 0]}, "post_processor"),
    ("added_tokens", [{**ADDED, "lstrip": True}], "added_tokens 'the'.lstrip: wanted false for gguf, got true"),
    ("added_tokens", [{**ADDED, "normalized": True}], "added_tokens 'the': wanted normalized=false"),
])  # fmt: skip
def test_a_tokenizer_that_llama_cpp_does_not_have(place, value, message, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        bitstill.export(with_tokenizer(tmp_path / "a", (place, value)), tmp_path / "b", to="gguf")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("normalizer", "lowercase"), [
    ({**BERT_NORMALIZER, "lowercase": True}, True),
    ({**BERT_NORMALIZER, "lowercase": False, "strip_accents": True}, False),
    ({"type": "Sequence", "normalizers": [
        {**BERT_NORMALIZER, "lowercase": False}, {"type": "Sequence", "normalizers": SEQUENCE["normalizers"]},
    ]}, True),
])  # fmt: skip
def test_a_tokenizer_that_it_has(normalizer, lowercase, tmp_path):
    changes = (("normalizer", normalizer), ("added_tokens", [ADDED]))
    bitstill.export(with_tokenizer(tmp_path / "a", *changes), tmp_path / "b", to="gguf")
    fields = gguf.GGUFReader(tmp_path / "b" / "model.gguf").fields
    assert fields["tokenizer.ggml.normalizer.lowercase"].contents() is lowercase
    assert fields["tokenizer.ggml.token_type"].contents(5) == gguf.TokenType.USER_DEFINED
    assert fields["tokenizer.ggml.tokens"].contents(5) == "the"


def test_a_tokenizer_it_cannot_read(tmp_path):
    path = encoder(tmp_path / "a") / "tokenizer.json"
    for content in ("[]", "{}", '{"model": {"vocab": 3}}', "no JSON"):
        path.write_text(content)
        edit_signed(path.parent)
        with pytest.raises(ArtifactError, match=r"wanted a tokenizer.json for gguf, got"):
            bitstill.export(tmp_path / "a", tmp_path / "b", to="gguf")
    path.unlink()
    edit_signed(path.parent)
    with pytest.raises(ArtifactError, match=r"wanted a tokenizer.json for gguf, got FileNotFoundError"):
        bitstill.export(tmp_path / "a", tmp_path / "b", to="gguf")


def test_options_of_onnx_are_refused(tmp_path):
    for options, message in (
        ({"activations": "per-tensor"}, "activations that gguf has"),
        ({"opset": 22}, "an opset with to='onnx'"),
    ):
        with pytest.raises(SpecError, match=message):
            bitstill.export(encoder(tmp_path / "a"), tmp_path / "o", to="gguf", **options)


def test_inspect_says_whether_it_fits(tmp_path):
    from bitstill.deliver.inspect import inspect

    assert inspect(encoder(tmp_path / "a"))["gguf"] == {"fits": True, "block_types": {"Q1_0": 19}}
    narrow = inspect(encoder(tmp_path / "b", hidden_size=48))["gguf"]
    assert not narrow["fits"] and "wanted rows and groups of whole blocks of 32 for gguf, got rows of 48" in narrow["why_not"]
