"""The C library behind packed layers in torch: its outputs, the layers it leaves alone, and its visibility to compilers."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

import bitstill
from bitstill.deliver.native_linear import NativeLinear, use_kernels
from bitstill.errors import SpecError
from bitstill.model.packed_layers import PackedLinear
from bitstill.quant.rules import Compression
from bitstill.runtime.library import library
from tests.exporters.test_layers import INPUTS, QUANTIZERS, delivered
from tests.exporters.test_networks import encoder_artifact
from tests.hf import tiny
from tests.pairwise import pairwise

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C compiler: there is no native library")


def linear(folder, kind="binary", which="token", granularity=None):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(70, 21))
    cut = {} if granularity is None else {"granularity": granularity}
    rule = Compression(weight=QUANTIZERS[kind](**cut), input=INPUTS[which])
    archive, packed = delivered(network, folder / "a", rule, torch.randn(6, 70))
    return packed, use_kernels(bitstill.load(folder / "a", model=nn.Sequential(nn.Linear(70, 21))), archive)


@pytest.mark.parametrize(
    ("which", "kind", "granularity"),
    pairwise(
        list(INPUTS), ["binary", "ternary", "split", "points5", "affine3", "symmetric8"], [None, bitstill.quant.Bucket(7)]
    ),
)
def test_a_layer_says_the_same(kind, which, granularity, tmp_path):
    packed, native = linear(tmp_path, kind, which, granularity)
    assert isinstance(native[0], NativeLinear)
    for shape in ((70,), (5, 70), (2, 3, 70), (0, 70), (2, 2, 3, 70)):
        if (len(shape) == 1 and which.startswith("sample")) or (0 in shape and which not in ("float", "token")):
            continue  # torch gives no result for it either
        x = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(native(x), packed(x), rtol=2e-5, atol=2e-5)
    strided = torch.randn(70, 5).T
    torch.testing.assert_close(native(strided), packed(strided), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(native[0].weight, packed[0].weight, rtol=0, atol=0)


def test_gradients_and_other_types_go_the_plain_way(tmp_path):
    packed, native = linear(tmp_path)
    x = torch.randn(4, 70, requires_grad=True)
    (mine,) = torch.autograd.grad(native(x).sum(), x)
    (wanted,) = torch.autograd.grad(packed(x).sum(), x)
    torch.testing.assert_close(mine, wanted, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(native(x.detach()), packed(x.detach()))


def test_compilers_see_one_operator(tmp_path):
    packed, native = linear(tmp_path)
    x = torch.randn(4, 70)
    exported = torch.export.export(native, (x,))
    assert "bitstill.packed_linear" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), packed(x), rtol=2e-5, atol=2e-5)
    compiled = torch.compile(native, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), packed(x), rtol=2e-5, atol=2e-5)


def test_an_exported_program_runs_with_its_own_layer_or_not_at_all(tmp_path):
    """Also in a process that has loaded others."""
    packed, native = linear(tmp_path)
    x = torch.randn(4, 70)
    exported = torch.export.export(native, (x,)).module()
    other = nn.Sequential(nn.Linear(70, 21))
    archive, _ = delivered(other, tmp_path / "b", Compression(weight=QUANTIZERS["binary"](), input=INPUTS["token"]), x)
    number = native[0].number
    others = use_kernels(bitstill.load(tmp_path / "b", model=nn.Sequential(nn.Linear(70, 21))), archive)
    assert others[0].number != number
    del native
    gc.collect()
    with pytest.raises(SpecError, match="a loaded layer"):
        exported(x)
    again = use_kernels(bitstill.load(tmp_path / "a", model=nn.Sequential(nn.Linear(70, 21))), bitstill.read(tmp_path / "a"))
    assert again[0].number == number
    torch.testing.assert_close(exported(x), packed(x), rtol=2e-5, atol=2e-5)


def test_copies_and_states_are_those_of_the_layer_that_it_was_made_of(tmp_path):
    packed, native = linear(tmp_path)
    x = torch.randn(4, 70)
    assert native.state_dict().keys() == packed.state_dict().keys()
    copied = copy.deepcopy(native)
    assert isinstance(copied[0], NativeLinear) and torch.equal(copied(x), native(x))
    pickled = pickle.loads(pickle.dumps(native))
    assert type(pickled[0]) is PackedLinear and torch.equal(pickled(x), packed(x))


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(strange, tmp_path):
    packed, native = linear(tmp_path)
    x = torch.randn(4, 70)
    x[2, 5] = strange
    with torch.no_grad():
        torch.testing.assert_close(native(x), packed(x), equal_nan=True)
        assert bool(native(x)[2].isnan().any())


def test_a_whole_encoder(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    plain, fast = bitstill.load(tmp_path / "a"), bitstill.load(tmp_path / "a", kernels=True)
    assert sum(isinstance(module, NativeLinear) for module in fast.modules()) == 18
    values = tiny.batch()
    values.pop("labels", None)
    with torch.inference_mode():
        wanted, found = plain(**values).logits, fast(**values).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))


def test_without_the_library_nothing_changes(tmp_path, monkeypatch):
    encoder_artifact("bert", tmp_path / "a")
    monkeypatch.setattr("bitstill.deliver.native_linear.library", lambda: None)
    assert not any(isinstance(module, NativeLinear) for module in bitstill.load(tmp_path / "a", kernels=True).modules())
