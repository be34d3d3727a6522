"""Weights shared by two layers: stored once and shared again when read; names of the user's own tensors stay free."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import bitstill
from bitstill.errors import ArtifactError
from bitstill.model.lifecycle import freeze, pack, prepare, unpack
from bitstill.quant.granularity import PerChannel, PerTensor
from bitstill.quant.rules import Binary, Compression, LearnedStep, Prune, QuantizeInput, SplitBinary, Ternary, Uniform
from tests.signing import edit_signed

WORDS, WIDTH = 40, 16
IDS = torch.arange(10).reshape(2, 5)


class Tied(nn.Module):
    """An embedding whose table is also the last layer's matrix: ids (N, L) -> (N, L, words)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.out = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.inner(self.words(ids)))


def stored_codes(archive: bitstill.Archive) -> int:
    return sum(tensor.nbytes for name, tensor in archive.tensors.items() if ".codes" in name)


@pytest.mark.parametrize("prune", [None, Prune(0.4)], ids=["dense", "pruned"])
@pytest.mark.parametrize("weight", [Uniform(4), Binary(), Ternary(), LearnedStep(4), SplitBinary()], ids=repr)
def test_tied_weights_are_stored_once_and_stay_tied(weight, prune, tmp_path, exact):
    model = Tied()
    prepare(model, Compression(weight=weight, prune=prune))
    model.eval()
    size = bitstill.save(model, tmp_path / "out")
    archive = bitstill.read(tmp_path / "out")
    assert archive.layers["out"].stored_as == "words"
    assert not any(name.startswith("out.") and name != "out.bias" for name in archive.tensors)
    assert [layer.name for layer in size.layers] == ["words", "inner"]
    assert size.float_bytes == 4 * (WORDS * WIDTH + WIDTH * WIDTH + WIDTH + WORDS)
    reloaded = bitstill.load(tmp_path / "out", model=Tied())
    assert reloaded.out.packed is reloaded.words.packed
    plain = unpack(reloaded)
    assert plain.out.weight is plain.words.weight
    with torch.no_grad():
        for stage in (freeze(model), pack(freeze(model)), reloaded, plain):
            assert exact(stage(IDS)) == exact(model(IDS))
    assert exact(archive.weight("out")) == exact(archive.weight("words")) == exact(model.out.effective_weight())


def test_what_has_become_different_is_stored_twice(tmp_path, exact):
    """Each layer has its own steps: once they differ, so do the codes."""
    model = Tied()
    prepare(model, Compression(weight=LearnedStep(4, granularity=PerChannel())))
    with torch.no_grad():
        model.out.weight_transform.learned["step"].mul_(1.5)
    model.eval()
    bitstill.save(model, tmp_path / "out")
    archive = bitstill.read(tmp_path / "out")
    assert archive.layers["out"].stored_as == "out"
    assert exact(bitstill.load(tmp_path / "out", model=Tied())(IDS)) == exact(model(IDS))


def test_rules_that_differ_keep_two_weights(tmp_path, exact):
    model = Tied()
    prepare(model, [Compression(targets=("words",), weight=Binary()), Compression(targets=("out",), weight=Uniform(8))])
    model.eval()
    bitstill.save(model, tmp_path / "out")
    assert exact(bitstill.load(tmp_path / "out", model=Tied())(IDS)) == exact(model(IDS))


def test_each_layer_keeps_its_own_input_quantizer(tmp_path, exact):
    model = Tied()
    prepare(model, Compression(weight=Uniform(4), input=QuantizeInput()))
    model.eval()
    bitstill.save(model, tmp_path / "out")
    archive = bitstill.read(tmp_path / "out")
    assert archive.layers["words"].input is None and archive.layers["out"].input is not None
    assert stored_codes(archive) == (WORDS * WIDTH + WIDTH * WIDTH) // 2
    assert exact(bitstill.load(tmp_path / "out", model=Tied())(IDS)) == exact(model(IDS))


def test_a_matrix_that_is_stored_the_other_way_round_is_shared_too(tmp_path, exact):
    def network() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 6, bias=False), Conv1D(8, 6))
        model[1].weight = nn.Parameter(torch.zeros(6, 8))
        model[0].weight = model[1].weight  # (out, in) of the first, (in, out) of the second
        return model

    model = network()
    nn.init.normal_(model[0].weight)
    prepare(model, Compression(weight=Uniform(4, granularity=PerChannel())))
    model.eval()
    bitstill.save(model, tmp_path / "out")
    x = torch.randn(3, 8)
    assert exact(bitstill.load(tmp_path / "out", model=network())(x)) == exact(model(x)), "rows differ: two weights, both right"


@pytest.mark.parametrize("name", ["codes", "scale", "offset", "mask", "levels"])
def test_a_buffer_of_the_users_own_may_be_called_as_one_of_ours(name, tmp_path, exact):
    def network() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
        model[0].register_buffer(name, torch.zeros(()))
        return model

    model = network()
    getattr(model[0], name).fill_(2.0)
    prepare(model, Compression(weight=Uniform(4), prune=Prune(0.3)))
    model.eval()
    bitstill.save(model, tmp_path / "out")
    archive = bitstill.read(tmp_path / "out")
    np.testing.assert_array_equal(archive.leftovers[f"0.{name}"], np.float32(2.0))
    reloaded = bitstill.load(tmp_path / "out", model=network())
    assert getattr(reloaded[0], name) == 2.0
    x = torch.randn(3, 8)
    assert exact(reloaded(x)) == exact(model(x))


@pytest.mark.parametrize("change", [{"scale_dtype": "float16"}, {"shape": [WIDTH, WORDS]}, {"quantizer": "other"}], ids=str)
def test_records_of_one_weight_that_differ_are_refused(change, tmp_path):
    model = Tied()
    prepare(model, Compression(weight=Uniform(4, granularity=PerTensor())))
    bitstill.save(model, tmp_path / "out")
    edit_signed(tmp_path / "out", config=lambda config: config["quantization_config"]["layers"]["out"].update(change))
    with pytest.raises(ArtifactError, match=r"out and words: wanted equal records of one weight"):
        bitstill.read(tmp_path / "out")
