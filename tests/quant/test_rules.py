"""Invalid settings are refused at construction; valid ones are plain values."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from bitstill import errors
from bitstill.errors import BitstillError, SpecError, need_package, suggest
from bitstill.quant.granularity import PerChannel, PerGroup
from bitstill.quant.rules import (
    Binary,
    Compression,
    ExactScale,
    Prune,
    QuantizeInput,
    Ternary,
    Uniform,
    quantizer,
)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Uniform(1, symmetric=True), "bits from 2 to 8, got 1"),
    (lambda: Uniform(4, symmetric=True, gradient=ExactScale()), "affine quantizer"),
    (lambda: QuantizeInput(8, range="clip"), "per='tensor' for a learned range"),
    (lambda: QuantizeInput(8, range="step", per="sample"), "per='tensor' for a learned range"),
    (lambda: Compression(targets=(), weight=Binary()), "at least one target"),
])  # fmt: skip
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(SpecError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert caught.value.fix.endswith((".", ")"))


def test_the_usual_quantizer_for_a_number_of_bits():
    group = PerGroup(64)
    assert quantizer(1, group) == Binary(group)
    assert quantizer("ternary", group, scale_dtype="float16") == Ternary(group, scale_dtype="float16")
    assert quantizer(4, group) == Uniform(4, granularity=group)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_levels_are_as_many_as_the_quantizer_makes(bits, symmetric):
    if symmetric and bits == 1:
        return
    spec = Uniform(bits, symmetric=symmetric, granularity=PerChannel())
    w = torch.linspace(-1, 1, 4001)[None]
    quantized = spec.quantize(w, None, {})
    assert quantized.planes[0].levels.numel() == 2**bits - symmetric == quantized.dequantize().unique().numel()


def test_specs_are_frozen_hashable_values():
    spec = Compression(weight=Uniform(4, granularity=PerGroup(64)), input=QuantizeInput(), prune=Prune(0.5))
    assert spec == pickle.loads(pickle.dumps(spec)) == dataclasses.replace(spec)
    assert len({spec, dataclasses.replace(spec), dataclasses.replace(spec, prune=None)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.weight = None  # type: ignore[misc]


def test_errors_are_one_tree_and_also_what_python_users_catch():
    kinds = {"SpecError": ValueError, "MatchError": ValueError, "DataError": ValueError, "TrainingError": RuntimeError,
             "CheckpointError": ValueError, "ArtifactError": ValueError, "MissingPackageError": ImportError}  # fmt: skip
    for name, builtin in kinds.items():
        kind = getattr(errors, name)
        error = kind("this", given="that", where="here", fix="Do so.")
        assert isinstance(error, BitstillError)
        assert isinstance(error, builtin)
        assert str(error) == "here: wanted this, got that. Do so."
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (str(again), again.fix) == (str(error), "Do so.")
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, BitstillError)}
    assert found == {*kinds, "BitstillError"}


def test_suggestions_name_the_nearest_and_all():
    assert suggest("biits", ["bits", "granularity"]) == "Did you mean 'bits'? Valid: bits, granularity."
    assert suggest("xyz", ["b", "a"]) == "Valid: a, b."
    assert suggest("xyz", []) == "Valid: none."


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImportError, match=r"pip install 'bitstill\[all\]'"):
        need_package("no_such_package_anywhere", extra="all", purpose="a test")
    assert need_package("json", extra="all", purpose="a test").dumps([1]) == "[1]"
