"""Integrity: an artifact is refused if any file that matters has changed, or any number in it is impossible."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitstill
from bitstill.artifact import codes as packing
from bitstill.artifact.digests import digested_files, renew_digests
from bitstill.artifact.format import CARD, CONFIG, DIGESTED_FILES, RECIPE, REPORT, WEIGHTS, most_weights
from bitstill.artifact.validate import check_codes
from bitstill.errors import ArtifactError
from bitstill.model.lifecycle import prepare
from bitstill.quant.layouts import natural_layout
from bitstill.quant.rules import Binary, Compression, Points, Prune, QuantizeInput, Ternary, Uniform
from tests.signing import edit_config, edit_signed

TOKENIZER = {"tokenizer.json": b'{"model": {"vocab": {"a": 0}}}', "vocab.txt": b"a\n"}


@pytest.fixture(scope="module")
def delivered(tmp_path_factory, make_zoo, write_artifact) -> Path:
    """An artifact with every kind of tensor and file."""
    torch.manual_seed(0)
    model = make_zoo()
    rules = (
        Compression(targets=("emb",), weight=Points(5)),
        Compression(targets=("conv1",), weight=Ternary(), prune=Prune(0.8)),
        Compression(targets=("conv2",), weight=Ternary()),
        Compression(targets=("head",), weight=Uniform(3), input=QuantizeInput(8), prune=Prune(0.4)),
    )
    prepare(model, rules)
    folder: Path = write_artifact(tmp_path_factory.mktemp("artifact"), model, bitstill.Storage(entropy_coding=True))
    for name, content in {**TOKENIZER, RECIPE: b"recipe: pqk\n", REPORT: b"{}", CARD: b"# a\n"}.items():
        (folder / name).write_bytes(content)
    renew_digests(folder)
    assert bitstill.read(folder).layers["conv1"].planes[0].coding == "bitmap"
    return folder


@pytest.fixture
def copy(delivered, tmp_path) -> Path:
    return Path(shutil.copytree(delivered, tmp_path / "copy"))


# Files ---------------------------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> str:
    """A digest of all weights and leftovers as read, and of the configuration without its editable fields."""
    archive = bitstill.read(folder)
    arrays = [archive.weight(name) for name in archive.layers] + list(archive.leftovers.values())
    config = {key: value for key, value in archive.config.items() if key != "_name_or_path"}
    text = json.dumps(config, sort_keys=True).encode()
    return hashlib.sha256(b"".join([text, *(array.tobytes() for array in arrays)])).hexdigest()


def flips(folder: Path, name: str, positions: list[int], seed: int) -> dict[str, int]:
    """Flip one bit at each position of a file; count how often it is refused and how often it reads as the same artifact.

    Raises:
        AssertionError: a changed file reads as another artifact.
    """
    data, draw, whole = (folder / name).read_bytes(), random.Random(seed), content_of(folder)
    counts = {"refused": 0, "the same": 0}
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(flipped)
        try:
            assert content_of(folder) == whole, f"{name}: a flipped bit of byte {position} makes another artifact"
            counts["the same"] += 1
        except ArtifactError:
            counts["refused"] += 1
    (folder / name).write_bytes(data)
    return counts


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, RECIPE, *TOKENIZER])
def test_flipped_bits(name, copy):
    size = (copy / name).stat().st_size
    counts = flips(copy, name, [*range(0, size, -(-size // 40))], seed=0)
    assert counts["refused"] > 0
    assert name == CONFIG or not counts["the same"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, RECIPE, *TOKENIZER])
def test_every_byte_with_a_flipped_bit(name, copy):
    size = (copy / name).stat().st_size
    counts = flips(copy, name, list(range(size)), seed=1)
    print(f"{name}: {counts['refused']} of {size} flips refused, {counts['the same']} read as the same artifact")
    assert name == CONFIG or not counts["the same"]


def test_files_that_are_missing_or_added(copy):
    assert set(digested_files(bitstill.read(copy).config)) == {CONFIG, RECIPE, *TOKENIZER}
    (copy / "added_tokens.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer's files as delivered, got more: \['added_tokens\.json'\]"):
        bitstill.read(copy)
    (copy / "added_tokens.json").unlink()
    (copy / "vocab.txt").unlink()
    with pytest.raises(ArtifactError, match=r"the file vocab\.txt, got none"):
        bitstill.read(copy)
    assert bitstill.read(copy, complete=False).layers, "a library may fetch one file at a time"


def test_a_tokenizer_may_join_an_artifact_that_has_none(zoo, tmp_path, write_artifact):
    prepare(zoo, Compression(weight=Binary()))
    folder = write_artifact(tmp_path / "a", zoo)
    for name in DIGESTED_FILES:
        (folder / name).write_bytes(b"")
    assert bitstill.read(folder).layers


@pytest.mark.parametrize("version", [1, 2])
def test_digests_cannot_be_switched_off_by_the_version(copy, version):
    edit_config(copy, lambda config: config["quantization_config"].update(version=version))
    with pytest.raises(ArtifactError, match=r"the config\.json that was delivered"):
        bitstill.read(copy)
    edit_config(copy, lambda config: config["quantization_config"].update(version=3, digests=None))
    with pytest.raises(ArtifactError, match="wanted digests of the files"):
        bitstill.read(copy)


# Numbers -------------------------------------------------------------------------------------------------------------------


def _set(name: str, value: float, place: int = 0) -> Callable[[dict[str, np.ndarray]], object]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name].reshape(-1)[place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("conv2.scale", np.nan), r"conv2\.scale: wanted finite numbers, got nan"),
        (_set("emb.offset", -np.inf), r"emb\.offset: wanted finite numbers, got -inf"),
        (_set("emb.levels", np.inf, 2), r"emb\.levels: wanted finite numbers, got inf"),
        (_set("head.bias", np.nan, 4), r"head\.bias: wanted finite numbers, got nan"),
        (_set("norm.running_mean", np.inf), r"norm\.running_mean: wanted finite numbers"),
        (_set("norm.running_var", -1e-3), r"norm\.running_var: wanted variances of at least 0, got -0\.001"),
        (_set("conv2.codes", 243), r"conv2\.codes: wanted codes below 3, got 3"),
        (_set("emb.codes", 255), r"emb\.codes: wanted codes below 5, got 7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "changed",
)  # fmt: skip
def test_numbers_that_cannot_be(copy, change, message):
    edit_signed(copy, tensors=change)
    with pytest.raises(ArtifactError, match=message):
        content_of(copy)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 63, 65, 127, 129, 255, 256])
@pytest.mark.parametrize("layout", ["natural", "bytes"])
def test_codes_beyond_their_levels_are_noticed_wherever_they_are(levels, layout):
    """The oracle is unpacking: arbitrary bytes pass if every code in whole bytes is below `levels`."""
    layout, draw = natural_layout(levels) if layout == "natural" else layout, np.random.default_rng(levels)
    length, most = 37, 243 if layout == "trits" else 256
    for top in (levels, levels, min(most, levels + 1), most):
        sound = packing.pack(draw.integers(0, min(top, levels), (4, length), dtype=np.uint8), levels, layout)
        check_codes(sound, levels, layout, "x")
        damaged = sound.copy()
        damaged[draw.integers(4), draw.integers(sound.shape[1] - 1)] = draw.integers(256)
        highest = packing.unpack(damaged, length, levels, layout).max()
        if (highest >= levels) or (layout == "trits" and damaged.max() > 242):
            with pytest.raises(ArtifactError, match=f"codes below {levels}"):
                check_codes(damaged, levels, layout, "x")
        else:
            check_codes(damaged, levels, layout, "x")


# Sizes ---------------------------------------------------------------------------------------------------------------------


def test_few_bytes_cannot_stand_for_many_weights(zoo, tmp_path, write_artifact):
    """A layer of zeros would compress to a few bytes: it is stored in no fewer bytes than its number of weights warrants."""
    zoo.head = torch.nn.Linear(1024, 1024)
    with torch.no_grad():
        zoo.head.weight.zero_()
    prepare(zoo, Compression(targets=("head",), weight=Uniform(8)))
    folder = write_artifact(tmp_path / "a", zoo, bitstill.Storage(entropy_coding=True))
    archive = bitstill.read(folder)
    assert archive.layers["head"].weights <= most_weights(archive.tensors["head.codes"].nbytes)

    def bomb(config: dict[str, Any]) -> None:
        config["quantization_config"]["layers"]["head"].update(shape=[2**19, 2**20])
        config["quantization_config"]["layers"]["head"]["planes"][0].update(coding="zstd")

    edit_signed(folder, config=bomb)
    with pytest.raises(ArtifactError, match="head"):
        bitstill.read(folder)
