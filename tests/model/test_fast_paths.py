"""torch modules that read a layer's weight themselves must not get the latent one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitstill
from bitstill.model.input_transform import InputTransform
from bitstill.model.lifecycle import freeze, pack, prepare
from bitstill.model.restore import load_into
from bitstill.quant.rules import Binary, Compression, QuantizeInput


def _encoder(layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.TransformerEncoder(layer, layers) if layers > 1 else layer)


@pytest.mark.parametrize("layers", [1, 2])
def test_encoder_layers_in_eval_use_effective_weights(layers, tmp_path, write_artifact, exact):
    model, x = _encoder(layers), torch.randn(2, 3, 16)
    prepare(model, Compression(weight=Binary()))
    model.eval()
    slow = model(x).detach()  # with gradients on, torch never takes its fast path
    reloaded = load_into(_encoder(layers), bitstill.read(write_artifact(tmp_path, model)))
    with torch.no_grad():
        fast = model(x)
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)  # attention has a fast path of its own
        for stage in (freeze(model), pack(freeze(model)), reloaded):
            assert exact(stage(x)) == exact(fast)


@pytest.mark.parametrize("layers", [1, 2])
def test_encoder_layers_in_eval_quantize_their_inputs(layers, tmp_path, write_artifact, exact, monkeypatch):
    calls = []
    quantize = InputTransform.forward
    monkeypatch.setattr(InputTransform, "forward", lambda self, x: calls.append(self) or quantize(self, x))
    model, x = _encoder(layers), torch.randn(2, 3, 16)
    prepare(model, Compression(weight=Binary(), input=QuantizeInput(4)))
    model.eval()
    reloaded = load_into(_encoder(layers), bitstill.read(write_artifact(tmp_path, model)))
    with torch.no_grad():
        for stage in (model, freeze(model), pack(freeze(model)), reloaded):
            calls.clear()
            assert exact(stage(x)) == exact(model(x))
            assert len(calls) == 2 * 2 * layers


def test_attention_keeps_its_own_projections_in_float():
    """`nn.MultiheadAttention` uses `out_proj` only through its weight; it is a subclass of Linear and therefore skipped."""
    model = _encoder(1)
    report = prepare(model, Compression(weight=Binary()))
    assert report.quantized == ("0.linear1.weight", "0.linear2.weight")
    rows = {row.parameter: row.detail for row in report.rows}
    assert rows["0.self_attn.out_proj.weight"] == "subclass NonDynamicallyQuantizableLinear with a forward of its own"
