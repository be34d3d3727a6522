"""Artifacts written by an older commit: today's code reads the same weights and computes the same outputs."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

import bitstill
import bitstill.runtime
from bitstill.runtime import model as runtime_model
from bitstill.runtime.library import library
from tests.files.write_artifacts import EveryLayer, logits_of, named, run

ARCHIVES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "files").glob("*.zip"))}


def contents(commit: str) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, np.ndarray]]]:
    """Weight digests by artifact and layer; inputs and outputs by artifact and name."""
    answers: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    with zipfile.ZipFile(ARCHIVES[commit]) as file:
        for name, value in load(file.read("answers.safetensors")).items():
            artifact, _, which = name.rpartition("/")
            answers[artifact][which] = value
        return json.loads(file.read("weights.json")), answers


DIGESTS, ANSWERS = zip(*map(contents, ARCHIVES), strict=True)
EVERY = [(commit, name) for commit, digests in zip(ARCHIVES, DIGESTS, strict=True) for name in digests]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    for commit, path in ARCHIVES.items():
        zipfile.ZipFile(path).extractall(folder / commit)
    return folder


def tolerance(name: str) -> float:
    """Relative to the largest output: another summation order changes last bits, which may round an input's code up or down."""
    inside_a_network = (name.startswith("bert-") and name != "bert-float-inputs") or name.startswith("inputs-")
    return 0.02 if inside_a_network else 1e-5


@pytest.mark.parametrize(("commit", "name"), EVERY)
def test_weights_and_answers_are_the_same(commit: str, name: str, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = unpacked / commit / name, list(ARCHIVES).index(commit)
    archive = bitstill.read(folder)
    digests = {layer: hashlib.sha256(archive.weight(layer).tobytes()).hexdigest() for layer in archive.layers}
    assert digests == DIGESTS[index][name]
    answers = ANSWERS[index][name]
    inputs = {key: value for key, value in answers.items() if key not in ("torch", "runtime", "numpy")}
    own = EveryLayer() if name.startswith("layers-") else None
    with torch.inference_mode():
        tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
        outputs = {"torch": logits_of(bitstill.load(folder, own)(**named(tensors))).numpy()}
    if own is None:
        outputs["runtime"] = run(folder, inputs)
        assert library() is None or bitstill.runtime.load(folder).engine != "numpy"
        monkeypatch.setattr(runtime_model, "library", lambda: None)
        outputs["numpy"] = run(folder, inputs)
    assert outputs.keys() == answers.keys() - inputs.keys()
    for engine, output in outputs.items():
        close = tolerance(name) * np.abs(answers[engine]).max()
        np.testing.assert_allclose(output, answers[engine], rtol=0, atol=close, err_msg=engine)


@pytest.mark.parametrize("commit", ARCHIVES)
def test_the_files_hold_every_kind_of_layer_plane_and_input(commit: str, unpacked: Path) -> None:
    archives = [bitstill.read(folder) for folder in (unpacked / commit).iterdir() if folder.is_dir()]
    layers = [layer for archive in archives for layer in archive.layers.values()]
    planes = [plane for layer in layers for plane in layer.planes]
    assert {layer.kind for layer in layers} == {"Linear", "Conv1d", "Conv2d", "Embedding", "TransposedLinear"}
    assert {type(layer.granularity).__name__ for layer in layers} == {"PerTensor", "PerChannel", "PerGroup", "Bucket"}
    assert {plane.layout for plane in planes} == {"bits", "trits", "bytes"}
    assert {plane.coding for plane in planes} == {"none", "zstd", "bitmap"}
    assert {layer.scale_dtype for layer in layers} == {"float32", "float16"}
    assert {len(layer.planes) for layer in layers} == {1, 2} and {layer.mask for layer in layers} == {True, False}
    assert any(plane.first is None for plane in planes) and any(plane.offset for plane in planes)
    inputs = [layer.input for layer in layers if layer.input]
    assert {rule["range"] for rule in inputs} == {"dynamic", "clip", "step"}
    assert {rule["per"] for rule in inputs} == {"token", "sample", "tensor"}
