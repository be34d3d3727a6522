"""compressed-tensors: our files as read by its own package, and by transformers with it."""

from __future__ import annotations

import json

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForSequenceClassification

import bitstill
from bitstill.errors import ArtifactError
from bitstill.exporters.compressed_tensors import bits_of, packed_words
from bitstill.quant.granularity import PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import Binary, Compression, LearnedStep, Points, Prune, QuantizeInput, SplitBinary, Ternary, Uniform
from tests.exporters.test_gguf import archive_of
from tests.hf import tiny


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(["binary", "ternary", "symmetric", "step", "pruned"]),
    bits=st.integers(2, 8),
    granularity=st.sampled_from([PerTensor(), PerChannel(), PerGroup(4)]),
    width=st.sampled_from([8, 12, 32, 36, 100]),
    seed=st.integers(0, 9),
)
def test_its_own_package_unpacks_the_trained_weights(tmp_path_factory, kind, bits, granularity, width, seed):
    quantizer = {
        "binary": Binary(granularity), "ternary": Ternary(granularity), "pruned": Uniform(bits, symmetric=True),
        "symmetric": Uniform(bits, symmetric=True, granularity=granularity), "step": LearnedStep(bits),
    }[kind]  # fmt: skip
    rule = Compression(weight=quantizer, prune=Prune(0.5) if kind == "pruned" else None)
    archive = archive_of(width, rule, tmp_path_factory.mktemp("c") / "a", seed)
    layer = archive.layers["0"]
    try:
        tensors = packed_words(archive, layer)
    except ArtifactError:
        assert width % layer.grid.size
        return
    words, scale, shape = (torch.from_numpy(tensors[f"0.weight_{name}"].copy()) for name in ("packed", "scale", "shape"))
    levels = unpack_from_int32(words, bits_of(layer), torch.Size(shape.tolist()))
    found = levels.float() * scale.repeat_interleave(width // scale.shape[1], 1)
    torch.testing.assert_close(found, torch.from_numpy(archive.weight("0")), rtol=0, atol=0)


RULES = {
    "binary": Compression(weight=Binary()), "ternary": Compression(weight=Ternary()),
    "3 bits": Compression(weight=Uniform(3, symmetric=True, granularity=PerGroup(8))),
    "8 bits, inputs too": Compression(weight=Uniform(8, symmetric=True, granularity=PerChannel()), input=QuantizeInput()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # transformers and the package warn about each other
@pytest.mark.parametrize("name", RULES)
def test_transformers_loads_it(name, tmp_path):
    from dataclasses import replace

    model = tiny.model("bert").eval()
    words = replace(RULES[name], targets=("*word_embeddings",), input=None)
    bitstill.prepare(model, [replace(RULES[name], targets=("*.layer.*",)), words])
    bitstill.save(model, tmp_path / "a")
    report = bitstill.export(tmp_path / "a", tmp_path / "o", to="compressed-tensors")
    assert report["file_bytes"] == (tmp_path / "o" / "model.safetensors").stat().st_size
    assert (
        len(report["inputs_no_longer_quantized"]) == (18 if "inputs" in name else 0)
        and len(report["bits"]) == 18
        and len(report["in_float"]) == 1
    )
    assert report == json.loads((tmp_path / "o" / "export.json").read_text())
    plain = bitstill.export(tmp_path / "a", tmp_path / "t", to="torch")
    assert report["file_bytes"] < plain["file_bytes"]
    loaded, float_model = (AutoModelForSequenceClassification.from_pretrained(tmp_path / way).eval() for way in ("o", "t"))
    ids = torch.randint(5, 50, (2, 6))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, float_model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rule", "width", "message"), [
    (Compression(weight=SplitBinary()), 32, "weights of one plane for compressed-tensors, got 2 planes"),
    (Compression(weight=Points(4)), 32, "whole numbers times a scale for compressed-tensors, got learned points"),
    (Compression(weight=Uniform(4)), 32, "got levels with an offset"),
    (Compression(weight=Binary(PerGroup(10))), 32, "got rows of 32 in groups of 10"),
])  # fmt: skip
def test_what_it_cannot_say_is_named(rule, width, message, tmp_path):
    archive = archive_of(width, rule, tmp_path / "a")
    with pytest.raises(ArtifactError, match=f"^0: wanted .*{message}"):
        bits_of(archive.layers["0"])


def test_only_models_of_transformers_and_their_kinds_of_layers(tmp_path):
    bitstill.save(nn.Sequential(nn.Linear(4, 4)), tmp_path / "a")
    with pytest.raises(ArtifactError, match="wanted a model of transformers"):
        bitstill.export(tmp_path / "a", tmp_path / "o", to="compressed-tensors")
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    bitstill.prepare(network, Compression(weight=Binary()))
    bitstill.save(network, tmp_path / "b")
    with pytest.raises(ArtifactError, match="linear layers for compressed-tensors, got a Conv2d"):
        bits_of(bitstill.read(tmp_path / "b").layers["0"])
