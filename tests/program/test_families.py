"""A new BERT-shaped family costs one entry: it then runs in the runtime, in numpy, and as ONNX."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import ErnieConfig, ErnieForSequenceClassification, ErnieModel

import bitstill
from bitstill.artifact.reader import read_config
from bitstill.errors import ArtifactError
from bitstill.exporters.onnx.lower import lower
from bitstill.exporters.onnx.session import open_session
from bitstill.program.families import BERT, FAMILIES
from bitstill.program.from_artifact import program_of
from bitstill.program.samples import random_inputs
from bitstill.quant.rules import Compression, Ternary
from bitstill.runtime import model as runtime_model
from bitstill.runtime.library import library

ERNIE = replace(BERT, bare="ErnieModel", prefix="ernie", head=("ernie.pooler.dense", "tanh", "classifier"))


def artifact(network_class, folder):
    """An encoder of a family unknown to bitstill, with ternary blocks; returns the network as saved."""
    torch.manual_seed(0)
    config = ErnieConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=20, attn_implementation="eager", num_labels=3,
    )  # fmt: skip
    network = network_class(config).eval()
    bitstill.prepare(network, Compression(weight=Ternary(), targets=("*.layer.*",)))
    bitstill.save(network, folder)
    return network


def answers(network, values):
    """Outputs of the network, without its rows for padding."""
    with torch.inference_mode():
        output = network(**{name: torch.from_numpy(value) for name, value in values.items()})
    if "logits" in output:
        return output.logits.numpy()
    return output.last_hidden_state.numpy() * values["attention_mask"][..., None]


@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize("network_class", [ErnieForSequenceClassification, ErnieModel])
def test_one_entry_runs_a_family(network_class, engine, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "ernie", ERNIE)
    if engine == "numpy":
        monkeypatch.setattr(runtime_model, "library", lambda: None)
    elif library() is None:
        pytest.skip("installed without a C compiler: there is no native library")
    network = artifact(network_class, tmp_path / "a")
    values = random_inputs(read_config(tmp_path / "a"), 4, 9, shortest=2)
    loaded = bitstill.runtime.load(tmp_path / "a")
    np.testing.assert_allclose(loaded(**values), answers(network, values), rtol=1e-4, atol=1e-5)


def test_the_same_entry_exports_it(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "ernie", ERNIE)
    network = artifact(ErnieForSequenceClassification, tmp_path / "a")
    values, archive = random_inputs(read_config(tmp_path / "a"), 4, 9), bitstill.read(tmp_path / "a")
    run = open_session(lower(program_of(archive), archive).data, threads=1)
    np.testing.assert_allclose(run(values), answers(network, values), rtol=1e-4, atol=1e-5)


def test_without_an_entry_it_is_refused(tmp_path):
    artifact(ErnieForSequenceClassification, tmp_path / "a")
    with pytest.raises(ArtifactError, match="an encoder of bert, roberta, electra, distilbert, got ernie"):
        bitstill.runtime.load(tmp_path / "a")
