"""A checkpoint is complete or refused, with an error that names the mismatch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from bitstill.errors import CheckpointError
from bitstill.train import checkpoint
from bitstill.train.checkpoint import Best, Checkpoint, Position

IDENTITY = {"recipe": "pqk", "settings": {"seed": 0, "optimizer": {"lr": 0.01}}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with every kind of content: a model, momentum, the best weights, history."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    models = {"student": model}
    position = Position(1, 7, True, [{"step": 5, "loss": 0.25}], {"splits": ["0"]}, [0.5, 0.25])
    checkpoint.save(tmp_path / "checkpoint", models, optimizer, position, IDENTITY, Best.of(models, 5, 81.5))
    return tmp_path / "checkpoint"


def refused_flips(path: Path, positions: list[int], seed: int) -> int:
    """Number of files with one flipped bit that are refused with an error of ours."""
    data, draw, refused = path.read_bytes(), random.Random(seed), 0
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            Checkpoint(path, IDENTITY)
        except CheckpointError:
            refused += 1
    path.write_bytes(data)
    return refused


def test_an_intact_checkpoint_is_read(saved: Path) -> None:
    read = Checkpoint(saved, IDENTITY)
    assert (read.position.step, read.position.losses) == (7, [0.5, 0.25])
    assert read.best is not None and read.best.value == 81.5


def test_a_flipped_bit_is_refused(saved: Path) -> None:
    size = saved.stat().st_size
    positions = [*range(0, size, size // 60), size - 1]
    assert refused_flips(saved, positions, 0) == len(positions)


@pytest.mark.slow
def test_any_flipped_bit_is_refused(saved: Path) -> None:
    size = saved.stat().st_size
    positions = [position for position in range(size) for _ in range(2)]
    refused = refused_flips(saved, positions, 1)
    print(f"{refused} of {len(positions)} flips over {size} bytes of a checkpoint were refused")
    assert refused == len(positions)


def test_bytes_that_are_missing_or_too_many_are_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for damaged in (b"", data[:7], data[:100], data[:-1], data + b"\0"):
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="intact checkpoint"):
            Checkpoint(saved, IDENTITY)


def test_the_key_that_differs_is_named(saved: Path) -> None:
    other = {**IDENTITY, "settings": {"seed": 0, "optimizer": {"lr": 0.1}}}
    with pytest.raises(CheckpointError, match=r"\(settings\.optimizer\.lr 0\.1\), got settings\.optimizer\.lr 0\.01"):
        Checkpoint(saved, other)
    with pytest.raises(CheckpointError, match=r"\(data null\), got data \"digits\""):
        checkpoint._compare({"data": "digits"}, {}, saved)
