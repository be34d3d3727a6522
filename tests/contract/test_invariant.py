"""The library's core promise: fake-quantized == frozen == packed == reloaded, bit for bit, for every quantizer."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples.own_quantizer import PowersOfTwo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.artifact.writer import Storage, write
from bitstill.errors import DataError
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.contents import contents_of
from bitstill.model.lifecycle import freeze, pack, prepare, unpack
from bitstill.model.restore import load_into
from bitstill.quant.granularity import Bucket, Granularity, PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import (
    Binary,
    Clipped,
    Compression,
    LearnedStep,
    Points,
    Prune,
    QuantizeInput,
    Quantizer,
    SplitBinary,
    Ternary,
    Uniform,
)
from tests.pairwise import pairwise

QUANTIZERS: dict[str, Quantizer] = {
    **{f"affine{b}": Uniform(b) for b in range(1, 9)},
    **{f"symmetric{b}": Uniform(b, symmetric=True) for b in range(2, 9)},
    "binary": Binary(),
    "ternary": Ternary(),
    "binary-learned": Binary(learned_scale=True),
    "ternary-learned": Ternary(learned_scale=True),
    **{f"points{n}": Points(n) for n in (2, 3, 5, 16, 100)},
    "points6-uniform": Points(6, init="uniform"),
    **{f"step{b}": LearnedStep(b) for b in (2, 3, 4, 8)},
    **{f"step{b}-no-dead-zone": LearnedStep(b, dead_zone=False) for b in (2, 4)},
    "split-binary": SplitBinary(),
    "ternary-fitted": Ternary(iterations=10),
    "ternary-loss-aware": Ternary(iterations=3, loss_aware=True),
    "affine2-fitted": Uniform(2, fit="least-squares"),
    "affine3-clipped": Uniform(3, gradient=Clipped(0.2)),
    **{f"own-powers-of-two{b}": PowersOfTwo(b) for b in (2, 4)},
}
GRANULARITIES: dict[str, Granularity] = {
    "tensor": PerTensor(), "channel": PerChannel(), "group5": PerGroup(5), "group999": PerGroup(999),
    "bucket7": Bucket(7), "bucket999": Bucket(999),
}  # fmt: skip


def _spec(name: str, granularity: Granularity, scale_dtype: str) -> Quantizer:
    return replace(QUANTIZERS[name], granularity=granularity, scale_dtype=scale_dtype)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def follow(model) -> None:
    """Simulate optimizer steps: loss-aware weights can be delivered only after some."""
    for module in model.modules():
        if getattr(module, "curvature", None) is not None:
            module.curvature.uniform_(0.1, 1.0)


def check_one_life(model, skeleton, inputs, folder, write_artifact, exact) -> None:
    """Follow a prepared `model` from training to reloading; every weight and output keeps every bit."""
    follow(model)
    model.train()
    trained = {n: exact(m.effective_weight()) for n, m in model.named_modules() if is_compressed(m)}
    model.eval()
    with torch.no_grad():
        outputs = model(*inputs)
        frozen = freeze(model)
        packed = pack(frozen)
        archive = bitstill.read(write_artifact(folder, model))
        reloaded = load_into(skeleton, archive)
        assert trained, "nothing was compressed"
        assert set(archive.layers) == set(trained)
        for name, bits in trained.items():
            assert exact(frozen.get_submodule(name).effective_weight()) == bits, f"{name} frozen"
            assert exact(packed.get_submodule(name).packed()) == bits, f"{name} packed"
            assert exact(reloaded.get_submodule(name).packed()) == bits, f"{name} reloaded"
            assert exact(archive.weight(name)) == bits, f"{name} read by numpy"
        for stage in (frozen, packed, reloaded):
            assert exact(stage(*inputs)) == exact(outputs)
        if not any(layer.input for layer in archive.layers.values()):
            assert exact(unpack(reloaded)(*inputs)) == exact(outputs)


@pytest.mark.parametrize(
    ("name", "granularity", "sparsity", "dtype"),
    pairwise(list(QUANTIZERS), list(GRANULARITIES), [0.6, 0.0], ["float16", "float32"]),
)
def test_every_quantizer_and_granularity(name, granularity, sparsity, dtype, make_zoo, ids, tmp_path, write_artifact, exact):
    model = make_zoo()
    with torch.no_grad():
        model.head.weight[0] = 0.0
        model.head.weight[1] = 0.25
        model.head.weight[2] *= 1e-32
        model.conv2.weight[0] *= 1e-38
    model(ids)  # running statistics of the norm layer
    prune = Prune(sparsity) if sparsity else None
    report = prepare(model, Compression(weight=_spec(name, GRANULARITIES[granularity], dtype), prune=prune))
    assert len([name for name in report.quantized if name.endswith(".weight")]) == 4
    check_one_life(model, make_zoo(), (ids,), tmp_path / "a", write_artifact, exact)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A layer of any kind and odd size, with weights of any magnitude, and an input for it."""
    a, b, k = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    match draw(st.sampled_from(["linear", "conv1d", "conv2d", "embedding"])):
        case "linear":
            layer, x = nn.Linear(a, b, bias=draw(st.booleans())), torch.randn(3, a)
        case "conv1d":
            groups = draw(st.sampled_from([1, a]))
            layer, x = (
                nn.Conv1d(a, a * b, k, groups=groups, padding=draw(st.sampled_from([0, 2, "same"] if k % 2 else [0, 2]))),
                torch.randn(2, a, 7),
            )
        case "conv2d":
            mode = draw(st.sampled_from(["zeros", "circular"]))
            layer, x = nn.Conv2d(a, b, (k, 2), stride=2, padding=1, padding_mode=mode), torch.randn(2, a, 8, 6)
        case _:
            layer, x = nn.Embedding(a, b), torch.randint(a, (2, 5))
    with torch.no_grad():
        layer.weight.mul_(draw(st.sampled_from([1.0, 1.0, 1e-30, 1e-41, 1e30])))
        row = draw(st.integers(0, layer.weight.shape[0] - 1))
        layer.weight[row] = draw(st.sampled_from([0.0, 1.0, -1e30, 1e-44]))
    return layer, x


@given(
    pair=layers(),
    name=st.sampled_from(sorted(QUANTIZERS)),
    granularity=st.one_of(
        st.just(PerTensor()), st.just(PerChannel()), st.integers(1, 9).map(PerGroup), st.integers(1, 300).map(Bucket)
    ),
    sparsity=st.sampled_from([None, 0.0, 0.3, 0.9]),
    dtype=st.sampled_from(["float32", "float16"]),
    entropy=st.booleans(),
)
@settings(max_examples=200)
def test_any_layer_with_any_weights(pair, name, granularity, sparsity, dtype, entropy, tmp_path, exact):
    layer, x = pair
    model, skeleton = nn.Sequential(layer), nn.Sequential(type(layer)(**_arguments(layer)))
    prune = None if sparsity is None else Prune(sparsity)
    largest = float(layer.weight.detach().abs().max())
    refused = dtype == "float16" and not 1e-3 < largest < 1e4  # scales may overflow float16 or underflow
    with contextlib.suppress(DataError) if refused else contextlib.nullcontext():
        prepare(model, Compression(weight=_spec(name, granularity, dtype), prune=prune))
    if not is_compressed(model[0]):
        return
    follow(model)
    bits = exact(model[0].effective_weight())
    assert np.isfinite(np.frombuffer(bits, np.float32)).all()
    model.eval()
    write(tmp_path, contents_of(freeze(model)), {}, Storage(entropy_coding=entropy))
    archive = bitstill.read(tmp_path)
    reloaded = load_into(skeleton, archive)
    assert exact(archive.weight("0")) == exact(reloaded[0].packed()) == bits
    with torch.no_grad():
        assert exact(reloaded(x)) == exact(model(x))


def _arguments(layer: nn.Module) -> dict[str, object]:
    names = {
        nn.Linear: ("in_features", "out_features"),
        nn.Conv1d: ("in_channels", "out_channels", "kernel_size", "groups", "padding"),
        nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "padding_mode"),
        nn.Embedding: ("num_embeddings", "embedding_dim"),
    }[type(layer)]
    bias = {"bias": layer.bias is not None} if isinstance(layer, nn.Linear) else {}
    return {name: getattr(layer, name) for name in names} | bias


RANGES = [("dynamic", "token"), ("dynamic", "sample"), ("dynamic", "tensor"), ("clip", "tensor"), ("step", "tensor")]


@pytest.mark.parametrize(("range_and_scope", "bits", "symmetric"), pairwise(RANGES, [4, 8], [True, False]))
def test_quantized_inputs_come_back_too(range_and_scope, bits, symmetric, make_zoo, ids, tmp_path, write_artifact, exact):
    range_, per = range_and_scope
    model = make_zoo()
    inputs = QuantizeInput(bits, symmetric=symmetric, per=per, range=range_)
    prepare(model, Compression(weight=Uniform(4), input=inputs))
    model.train()(ids)  # learned steps are initialized here
    check_one_life(model, make_zoo(), (ids,), tmp_path, write_artifact, exact)
    archive = bitstill.read(tmp_path)
    assert archive.layers["head"].input == {"bits": bits, "symmetric": symmetric, "per": per, "range": range_}
    assert archive.layers["emb"].input is None, "ids are not quantized"


@pytest.mark.parametrize("name", ["affine4", "symmetric8", "binary", "ternary", "points5"])
def test_autocast_does_not_change_a_bit_of_the_effective_weight(name, make_zoo, ids, exact):
    model = make_zoo()
    prepare(model, Compression(weight=QUANTIZERS[name], prune=Prune(0.3)))
    plain = {n: exact(m.effective_weight()) for n, m in model.named_modules() if is_compressed(m)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(ids).dtype == torch.bfloat16, "autocast is on"
        assert plain == {n: exact(m.effective_weight()) for n, m in model.named_modules() if is_compressed(m)}


@pytest.mark.parametrize("symmetric", [True, False])
def test_stochastic_rounding_ends_when_frozen(symmetric, make_zoo, exact):
    model = make_zoo()
    prepare(model, Compression(weight=Uniform(3, symmetric=symmetric, rounding="stochastic")))
    assert exact(model.head.effective_weight()) != exact(model.head.effective_weight())
    nearest = make_zoo()
    nearest.load_state_dict(model.state_dict())
    prepare(nearest, Compression(weight=Uniform(3, symmetric=symmetric)))
    assert (
        exact(freeze(model).head.weight)
        == exact(nearest.head.effective_weight())
        == exact(model.eval().head.effective_weight())
    )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_fully_pruned_layer_is_all_plus_zero_to_the_end(name, tmp_path, write_artifact, exact):
    model = nn.Sequential(nn.Linear(5, 3))
    prepare(model, Compression(weight=QUANTIZERS[name], prune=Prune(0.99)))
    assert not model[0].weight_transform.mask.any()
    check_one_life(model, nn.Sequential(nn.Linear(5, 3)), (torch.randn(2, 5),), tmp_path, write_artifact, exact)
    assert exact(model[0].effective_weight()) == bytes(4 * 15)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_sparsity_of_the_delivered_weight_is_what_was_asked_for(name, tmp_path, write_artifact):
    model = nn.Sequential(nn.Linear(25, 8))
    prepare(model, Compression(weight=QUANTIZERS[name], prune=Prune(0.5)))
    follow(model)
    archive = bitstill.read(write_artifact(tmp_path, model))
    kept = model[0].weight_transform.mask.numpy()
    assert (archive.weight("0")[~kept] == 0).all()
    assert int((~kept).sum()) == 100
    stored = archive.layers["0"].mask
    assert stored == (not name.startswith(("symmetric", "ternary", "step"))), "a mask is stored only where no level is zero"


def test_changed_points_of_another_number_come_back(tmp_path, write_artifact, exact):
    model = nn.Sequential(nn.Linear(25, 8))
    prepare(model, Compression(weight=Points(16)))
    model[0].weight_transform.learned["points"] = nn.Parameter(torch.tensor([0.9, -0.0, 0.3, 0.3, 1.2, 0.5, -0.1]))
    check_one_life(model, nn.Sequential(nn.Linear(25, 8)), (torch.randn(2, 25),), tmp_path, write_artifact, exact)
    assert bitstill.read(tmp_path).layers["0"].planes[0].levels == 7
