"""The quantizer of `examples/own_quantizer.py`, built from public names only, from training to every export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples.own_quantizer import PowersOfTwo
from torch import nn

import bitstill
from bitstill.artifact.reader import read_config
from bitstill.data.networks import build
from bitstill.data.task import Task, evaluate
from bitstill.decode import decode, encode
from bitstill.losses.logits import CrossEntropy
from bitstill.model.lifecycle import freeze, pack
from bitstill.program.samples import random_inputs
from bitstill.quant import Compression, PerGroup, Prune, QuantizeInput, Quantizer
from bitstill.train.actions import Compress
from bitstill.train.loop import train
from bitstill.train.optim import AdamW
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term
from tests.train.tiny import network, task


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_each_weight_is_at_the_nearest_power_of_two(bits):
    weight = torch.randn(6, 50)
    effective = PowersOfTwo(bits).quantize(weight, None, {}).dequantize().numpy()
    for row, values in zip(weight.numpy(), effective, strict=True):
        magnitudes = np.abs(row).max() * 2.0 ** -np.arange(2 ** (bits - 1))
        levels = np.concatenate([magnitudes, -magnitudes])
        np.testing.assert_allclose(values, levels[np.abs(row[:, None] - levels).argmin(1)], rtol=1e-6)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(bitstill.BitstillError, match="bits from 2 to 5, got 6"):
        PowersOfTwo(6)


@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
@pytest.mark.parametrize("prune", [None, Prune(0.5)], ids=["dense", "pruned"])
def test_it_trains_and_what_is_delivered_is_what_was_trained(prune, scale_dtype, tmp_path, exact):
    rule = Compression(weight=PowersOfTwo(3, granularity=PerGroup(5), scale_dtype=scale_dtype), prune=prune)
    models: dict[str, nn.Module] = {"student": network(2)}
    data: Task = task()
    stage = Stage("own", terms=(Term(CrossEntropy()),), steps=60, batch_size=16, optimizer=AdamW(0.01))
    before = evaluate(freeze(models["student"]), data, data.test)
    train([replace(stage, begin=(Compress("student", rule),))], models, data, Settings(progress=False, device="cpu"))
    model = models["student"].eval()
    bitstill.save(model, tmp_path / "out")
    reloaded = bitstill.load(tmp_path / "out", model=network(3))
    assert evaluate(reloaded, data, data.test) > before
    x = data.test.take(torch.arange(len(data.test)))["x"]
    with torch.no_grad():
        for stage_of_life in (freeze(model), pack(freeze(model)), reloaded):
            assert exact(stage_of_life(x)) == exact(model(x))
    layers = bitstill.read(tmp_path / "out").layers.values()
    assert {(layer.quantizer, layer.planes[0].levels) for layer in layers} == {("3-bit powers of two", 8)}


def test_the_runtime_and_onnx_compute_with_its_levels(tmp_path):
    model = build("digits-student").eval()
    bitstill.prepare(model, Compression(weight=PowersOfTwo(2)))
    bitstill.save(model, tmp_path / "out")
    (picture,) = random_inputs(read_config(tmp_path / "out"), 5, 1).values()
    with torch.no_grad():
        wanted = model(torch.from_numpy(picture)).numpy()
    computed = bitstill.runtime.load(tmp_path / "out")(picture)
    np.testing.assert_allclose(computed, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    report = bitstill.export(tmp_path / "out", tmp_path / "onnx")  # the export raises if its file gives other outputs
    assert report["compared"]["largest_difference"] < 1e-3


def test_it_is_data_as_every_rule_is():
    rule = Compression(weight=PowersOfTwo(2), input=QuantizeInput())
    assert (
        encode(rule)["weight"]["kind"] == "examples.own_quantizer:PowersOfTwo"
        and decode(Compression, encode(rule), imports=True) == rule
    )
    assert isinstance(rule.weight, Quantizer) and hash(rule) == hash(replace(rule))
