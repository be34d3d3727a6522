"""All readers agree on every artifact: torch, the runtime and its numpy reference refuse it, or give the same outputs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitstill
import bitstill.runtime
from bitstill.artifact.reader import read
from bitstill.deliver.architecture import blank_network
from bitstill.errors import ArtifactError, BitstillError
from bitstill.model.lifecycle import prepare
from bitstill.program.from_artifact import program_of
from bitstill.quant.rules import Compression, Uniform
from bitstill.runtime import model as runtime_model
from tests.files.write_artifacts import image_network, text_network
from tests.runtime import fuzz
from tests.signing import edit_signed

Said = dict[str, Any]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "sound"
    network = image_network()
    prepare(network, Compression(weight=Uniform(4)))
    bitstill.save(network, folder)
    return folder


def answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Outputs or error of each reader, for the same images."""
    image = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)

    def in_numpy() -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(runtime_model, "library", lambda: None)
            return bitstill.runtime.load(folder)(image)

    readers: dict[str, Callable[[], Any]] = {
        "torch": lambda: bitstill.load(folder)(torch.from_numpy(image)).detach().numpy(),
        "runtime": lambda: bitstill.runtime.load(folder, threads=1)(image),
        "numpy": in_numpy,
    }
    said: Said = {}
    for name, reader in readers.items():
        try:
            said[name] = reader()
        except BitstillError as error:
            said[name] = error
    return said


def agreement(source: Path, scratch: Path, count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Artifacts changed in one or two places and signed again: counts that all readers refuse, all accept, or some accept.

    Raises:
        AssertionError: readers that accept an artifact give different outputs.
    """
    counts = {"refused": 0, "accepted": 0, "split": 0}
    for number in range(count):
        folder, which = scratch / str(number), f"seed {seed}, number {number}"
        fuzz.hostile(source, folder, random.Random(f"{seed} {number}"))
        said = answers(folder, monkeypatch)
        shutil.rmtree(folder)
        outputs = {name: each for name, each in said.items() if not isinstance(each, BitstillError)}
        counts["accepted" if len(outputs) == len(said) else "split" if outputs else "refused"] += 1
        if any(not np.isfinite(output).all() for output in outputs.values()):
            continue  # it left float32 on the way, and where depends on the order of factors
        for name, output in outputs.items():
            first = next(iter(outputs.values()))
            close = 1e-4 * np.abs(first).max(initial=1e-6)
            np.testing.assert_allclose(output, first, rtol=0, atol=close, err_msg=f"{which}: {name}")
    return counts


def test_readers_agree_on_changed_artifacts(pictures, tmp_path, monkeypatch):
    counts = agreement(pictures, tmp_path, 40, 0, monkeypatch)
    assert counts["refused"] > 10 and counts["accepted"] > 2 and not counts["split"]


@pytest.mark.slow
def test_readers_agree_on_many_changed_artifacts(pictures, tmp_path, monkeypatch):
    counts = agreement(pictures, tmp_path, 2000, 1, monkeypatch)
    print(f"readers of 2000 changed artifacts: {counts}")
    # The arguments of a convolutional network are compared with the file by torch alone, since the others build no layers.
    assert counts["split"] <= 0.05 * 2000 and counts["accepted"] > 100


# Sizes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers: wanted at most 64 where there are \d+ tensors, got 1000000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: wanted at most 64"),
        ({"num_labels": 10**9}, r"num_labels: wanted at most \d+ labels, got 1000000000"),
        ({"hidden_size": 2**20, "num_attention_heads": 2}, r"a network of at most \d+ numbers"),
        ({"vocab_size": 2**40}, r"a network of at most \d+ numbers"),
        ({"vocab_size": 2**80}, "transformers knows"),
        ({"max_position_embeddings": 10**12}, r"a network of at most \d+ numbers"),
    ],
    ids=str,
)
def test_networks_larger_than_their_file_are_not_built(change, message, tmp_path):
    network = text_network()
    prepare(network, Compression(weight=Uniform(4)))
    bitstill.save(network, tmp_path / "a")
    edit_signed(tmp_path / "a", config=lambda config: config.update(change))
    with pytest.raises(ArtifactError, match=message):
        blank_network(read(tmp_path / "a"))


def test_a_program_uses_every_tensor_there_is(pictures, tmp_path):
    for name, change, message in (
        ("more", lambda tensors: tensors.update({"features.9.bias": np.zeros(3, np.float32)}), r"does not have \['features.9"),
        ("fewer", lambda tensors: tensors.pop("classifier.bias"), r"1 missing \['classifier\.bias'\]"),
    ):
        folder = Path(shutil.copytree(pictures, tmp_path / name))
        edit_signed(folder, tensors=change)
        with pytest.raises(ArtifactError, match=message):
            program_of(read(folder))
