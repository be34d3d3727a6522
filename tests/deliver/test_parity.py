"""Verification of exports detects small differences: each is planted in the exported program."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import bitstill
from bitstill.deliver import export as export_module
from bitstill.deliver.parity import IN_FLOAT, compare_outputs
from bitstill.errors import ArtifactError
from bitstill.exporters.onnx.lower import lower
from bitstill.exporters.onnx.session import open_session
from bitstill.program import operations as ops
from bitstill.program.from_artifact import program_of
from bitstill.program.samples import contrasting_inputs
from bitstill.quant.rules import Compression, QuantizeInput, Uniform
from tests.hf import tiny


def artifact(folder, kind="bert", quantizer=None, **config):
    """A tiny encoder with 8-bit weights and inputs, whose embeddings are as small as those of pretrained models."""
    model = tiny.model(kind, **config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_embeddings.weight" in name:
                parameter.normal_(0, 0.02)
    bitstill.prepare(model, Compression(weight=Uniform(8), targets=("*.layer.*",), input=quantizer))
    bitstill.save(model, folder)


def other_epsilon(step):
    return replace(step, operation=replace(step.operation, epsilon=1e-5)) if isinstance(step.operation, ops.LayerNorm) else step


def other_activation(step):
    operation = step.operation
    gelu = isinstance(operation, ops.Activation) and operation.function == "gelu"
    return replace(step, operation=ops.Activation("gelu_tanh")) if gelu else step


def other_padding(step):
    """Positions that count padding."""
    operation = step.operation
    return replace(step, operation=replace(operation, padding=None)) if isinstance(operation, ops.Positions) else step


@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("quantizer", [None, QuantizeInput(8)], ids=["float", "quantized"])
@pytest.mark.parametrize(("change", "kind"), [
    (other_epsilon, "bert"), (other_activation, "bert"), (other_padding, "roberta"),
])  # fmt: skip
def test_a_planted_difference_is_found(change, kind, quantizer, to, tmp_path, monkeypatch):
    artifact(tmp_path / "a", kind, quantizer)
    bitstill.export(tmp_path / "a", tmp_path / "right", to=to)

    def planted(archive):
        program = program_of(archive)
        steps = [change(step) for step in program.steps]
        assert steps != list(program.steps)
        program.steps[:] = steps
        return program

    monkeypatch.setattr(export_module, "program_of", planted)
    with pytest.raises(ArtifactError, match="wanted outputs that differ by at most"):
        bitstill.export(tmp_path / "a", tmp_path / "wrong", to=to)
    assert not (tmp_path / "wrong").exists()


def test_attention_to_padding_is_found(tmp_path):
    artifact(tmp_path / "a")
    archive = bitstill.read(tmp_path / "a")
    run = open_session(lower(program_of(archive), archive).data)
    assert compare_outputs(archive, run, IN_FLOAT).passed
    with pytest.raises(ArtifactError, match="wanted outputs that differ by at most"):
        compare_outputs(archive, lambda values: run({**values, "attention_mask": values["attention_mask"] * 0 + 1}), IN_FLOAT)


def test_inputs_reach_every_length_segment_and_position():
    config = tiny.config("bert").to_dict()
    several, single, longest = contrasting_inputs(config, 16, 32)
    lengths = several["attention_mask"].sum(1)
    assert lengths.min() == 1 and lengths.max() == 32 and len(set(lengths.tolist())) > 5
    assert single["input_ids"].shape == (1, 1)
    assert longest["input_ids"].shape == (1, config["max_position_embeddings"])
    assert set(several["token_type_ids"].ravel().tolist()) == {0, config["type_vocab_size"] - 1}
    words = contrasting_inputs({**config, "vocab_size": 3}, 16, 32)[0]["input_ids"]
    assert set(words.ravel().tolist()) == {0, 1, 2}
