"""Damaged artifacts raise a clear error and never load as a wrong model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitstill
from bitstill.artifact.format import CONFIG, FORMAT_VERSIONS, WEIGHTS
from bitstill.errors import ArtifactError
from bitstill.model.lifecycle import prepare
from bitstill.model.restore import load_into
from bitstill.quant.rules import Binary, Compression, Points, Prune, QuantizeInput, Ternary, Uniform
from tests.signing import edit_config, edit_signed


@pytest.fixture(scope="module")
def delivered(tmp_path_factory, make_zoo, write_artifact) -> Path:
    """An artifact with every kind of tensor: codes, entropy-coded codes, scales, offsets, levels, masks, leftovers."""
    torch.manual_seed(0)
    model = make_zoo()
    rules = (
        Compression(targets=("emb",), weight=Points(5)),
        Compression(targets=("conv1",), weight=Binary(), prune=Prune(0.4)),
        Compression(targets=("conv2",), weight=Ternary()),
        Compression(targets=("head",), weight=Uniform(3), input=QuantizeInput(8)),
    )
    with torch.no_grad():
        model.head.weight[:] = 0.5
        model.head.weight[:, 0] = 1.0  # worth compressing further
    prepare(model, rules)
    folder: Path = write_artifact(tmp_path_factory.mktemp("artifact"), model, bitstill.Storage(entropy_coding=True))
    assert bitstill.read(folder).layers["head"].planes[0].coding == "zstd"
    return folder


@pytest.fixture
def copy(delivered, tmp_path) -> Path:
    return Path(shutil.copytree(delivered, tmp_path / "copy"))


def refused(folder: Path, match: str, model: nn.Module | None = None) -> None:
    """Check that reading, and loading into `model`, raises an ArtifactError that names the place and the remedy."""
    with pytest.raises(ArtifactError, match=match) as caught:  # noqa: PT012
        archive = bitstill.read(folder)
        assert model is not None, "the damage went unnoticed"
        load_into(model, archive)
    assert caught.value.where
    assert caught.value.fix.endswith((".", "?"))


def test_intact_files_are_read(copy, zoo):
    load_into(zoo, bitstill.read(copy))
    edit_config(copy, lambda config: config.update(_name_or_path="elsewhere"))
    assert bitstill.read(copy).config["_name_or_path"] == "elsewhere", "JSON may be laid out anew, and some keys edited"
    (copy / "README.md").write_text("mine")
    assert bitstill.read(copy).layers


def test_missing_folder_and_files(copy, tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    refused(copy / CONFIG, "no such folder")
    refused(tmp_path, "no config.json")
    (copy / WEIGHTS).unlink()
    refused(copy, "no model.safetensors")


def test_truncated_weights_at_every_interesting_length(copy, delivered):
    data = (delivered / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, (header + len(data)) // 2, len(data) - 1):
        (copy / WEIGHTS).write_bytes(data[:length])
        refused(copy, "truncated or damaged")
    (copy / WEIGHTS).write_bytes(data + b"\0")
    refused(copy, "damaged")


@given(data=st.data())
def test_one_flipped_bit_anywhere_in_the_weights(data, delivered, tmp_path):
    target = tmp_path / "flipped"
    target.mkdir(exist_ok=True)
    shutil.copy(delivered / CONFIG, target / CONFIG)
    weights = bytearray((delivered / WEIGHTS).read_bytes())
    position = data.draw(st.integers(0, len(weights) - 1))
    weights[position] ^= 1 << data.draw(st.integers(0, 7))
    (target / WEIGHTS).write_bytes(weights)
    refused(target, "damaged")


@given(data=st.data())
def test_truncated_config(data, delivered, tmp_path):
    target = tmp_path / "cut"
    target.mkdir(exist_ok=True)
    shutil.copy(delivered / WEIGHTS, target / WEIGHTS)
    text = (delivered / CONFIG).read_bytes()
    (target / CONFIG).write_bytes(text[: data.draw(st.integers(0, len(text) - 2))])
    refused(target, "quantization_config written by bitstill")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"quantization_config": 3}', '{"quantization_config": []}',
                                  '{"quantization_config": {"quant_method": "bitstill"}}', "\ufeff{}"])  # fmt: skip
def test_config_that_is_no_config(copy, text):
    (copy / CONFIG).write_text(text, encoding="utf-8")
    refused(copy, "quantization_config written by bitstill")


def test_config_that_is_not_text(copy):
    (copy / CONFIG).write_bytes(b"\xff\xfe\x00")
    refused(copy, "quantization_config written by bitstill")


@pytest.mark.parametrize("version", [0, max(FORMAT_VERSIONS) + 1, "1", None, 1.5])
def test_another_version(copy, version):
    edit_config(copy, lambda config: config["quantization_config"].update(version=version))
    refused(copy, "format version 1 or 2 or 3.*Upgrade")


@pytest.mark.parametrize("method", ["gptq", "awq", None])
def test_another_library(copy, method):
    edit_config(copy, lambda config: config["quantization_config"].update(quant_method=method))
    refused(copy, "Load it with the library that wrote it")


def _layer(name: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["quantization_config"]["layers"][name].update(changes)


def _plane(name: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["quantization_config"]["layers"][name]["planes"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _layer("head", shape=[60, 5]),
        _layer("head", shape=[5, 59]),
        _layer("head", shape="5x60"),
        _layer("head", kind="Conv2d"),
        _layer("head", granularity={"kind": "channel"}),
        _layer("head", granularity={"kind": "group", "size": 64}),
        _layer("head", granularity={"kind": "bucket", "size": 0}),
        _layer("head", granularity={"kind": "row"}),
        _layer("head", mask=True),
        _layer("head", input=None),
        _layer("head", input={"bits": 4}),
        _layer("head", planes=[]),
        _layer("head", extra=1),
        _layer("conv1", mask=False),
        _layer("head", scale_dtype="float16"),
        _plane("head", levels=7),
        _plane("head", levels=4),
        _plane("head", first=1),
        _plane("head", step=2),
        _plane("head", offset=False),
        _plane("head", coding="none"),
        _plane("head", coding="lzma"),
        _plane("head", layout="trits"),
        _plane("emb", first=0, step=1),
        _plane("conv2", levels="3"),
        lambda config: config["quantization_config"].pop("layers"),
        lambda config: config["quantization_config"].update(layers=None),
        lambda config: config["quantization_config"]["layers"].pop("emb"),
        lambda config: config["quantization_config"]["layers"].update(other=config["quantization_config"]["layers"]["emb"]),
        lambda config: config["quantization_config"].pop("weights_sha256"),
        lambda config: config["quantization_config"].update(weights_sha256="0" * 64),
    ],
)
def test_edited_records(copy, change):
    edit_config(copy, change)
    refused(copy, r"config\.json")


def test_files_of_two_artifacts(copy, tmp_path, zoo, write_artifact):
    """Same architecture, shapes and settings, trained twice: only the checksum can tell them apart."""
    prepare(zoo, Compression(weight=Uniform(3)))
    one = write_artifact(tmp_path / "one", zoo)
    with torch.no_grad():
        zoo.head.weight.add_(0.01 * torch.randn(5, 60))
    two = write_artifact(tmp_path / "two", zoo)
    for name in (WEIGHTS, CONFIG):
        mixed = Path(shutil.copytree(one, tmp_path / f"mixed-{name}"))
        shutil.copy(two / name, mixed / name)
        refused(mixed, "Files of two artifacts were mixed")


def _damage_frame(position: int) -> Callable[[dict[str, np.ndarray]], object]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["head.codes"][position] ^= 0x08

    return change


@pytest.mark.parametrize("position", range(-8, 8))
def test_damaged_zstandard_frame_behind_a_correct_checksum(copy, position, zoo):
    edit_signed(copy, tensors=_damage_frame(position))
    refused(copy, "intact Zstandard frame", zoo)


@pytest.mark.parametrize("keep", [0, 1, 5, -1])
def test_truncated_zstandard_frame_behind_a_correct_checksum(copy, keep, zoo):
    edit_signed(copy, tensors=lambda tensors: tensors.update({"head.codes": tensors["head.codes"][:keep]}))
    refused(copy, "intact Zstandard frame", zoo)


@pytest.mark.parametrize(
    "name", ["emb.codes", "emb.scale", "emb.offset", "emb.levels", "conv1.mask", "conv1.scale", "conv2.codes"]
)
def test_tensors_that_are_missing_or_of_another_shape_behind_a_correct_checksum(copy, name):
    edit_signed(copy, tensors=lambda tensors: tensors.update({name: tensors[name].ravel()[:-1]}))
    refused(copy, f"a tensor {name} of .* and shape")
    edit_signed(copy, tensors=lambda tensors: tensors.pop(name))
    refused(copy, f"a tensor {name} of .* and shape.*got none")


def test_leftovers_that_are_missing_or_unknown(copy, zoo, make_zoo):
    edit_signed(copy, tensors=lambda tensors: tensors.pop("head.bias"))
    refused(copy, r"1 missing \['head\.bias'\]", zoo)
    stray = {"head.bias": np.zeros(5, np.float32), "stray": np.zeros(1, np.float32)}
    edit_signed(copy, tensors=lambda tensors: tensors.update(stray))
    refused(copy, r"1 unexpected \['stray'\]", make_zoo())
    edit_signed(copy, tensors=lambda tensors: tensors.pop("stray"))
    load_into(make_zoo(), bitstill.read(copy))
    edit_signed(copy, tensors=lambda tensors: tensors.update({"head.bias": np.zeros(4, np.float32)}))
    refused(copy, r"head\.bias: wanted shape \(5,\), got \(4,\)", make_zoo())


def test_another_architecture(copy, make_zoo):
    def changed(name: str, module: nn.Module) -> nn.Module:
        model = make_zoo()
        setattr(model, name, module)
        return model

    refused(copy, r"head: wanted a weight of shape \(5, 60\), got \(6, 60\)", changed("head", nn.Linear(60, 6)))
    refused(copy, "head: wanted a Linear layer, got Identity", changed("head", nn.Identity()))
    refused(copy, "conv1: wanted a Conv1d layer, got Linear", changed("conv1", nn.Linear(7, 6)))
    refused(copy, r"'head\.bias'", changed("head", nn.Linear(60, 5, bias=False)))
    refused(copy, r"norm", changed("norm", nn.BatchNorm1d(7)))
    refused(copy, r"missing \['more\.bias', 'more\.weight'\]", changed("more", nn.Linear(2, 2)))
    refused(copy, "emb: wanted a Embedding layer, got none", nn.Sequential(nn.Linear(2, 2)))


def test_a_model_that_is_already_compressed_is_another_architecture(copy, zoo):
    prepare(zoo, Compression(weight=Binary()))
    refused(copy, "got CompressedEmbedding", zoo)
