"""Settings and small networks shared by several test folders."""

from __future__ import annotations

import os

# Before torch is imported, here and in child processes: threads would wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn

import bitstill
from bitstill.artifact.writer import Storage
from bitstill.artifact.writer import write as write_artifact_files
from bitstill.model.contents import contents_of

hypothesis.settings.register_profile(
    "bitstill",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("bitstill")


def pytest_configure(config: pytest.Config) -> None:
    # Most runs here take a few steps on a handful of samples; the warning about useless results is expected.
    config.addinivalue_line("filterwarnings", "ignore::bitstill.errors.BitstillWarning")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Zoo(nn.Module):
    """One layer of every kind that can be compressed, with odd sizes, a buffer and a norm layer: ids (N, 9) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 7, padding_idx=3)
        self.conv1 = nn.Conv1d(7, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.conv2 = nn.Conv2d(3, 4, (3, 2), groups=1)
        self.head = nn.Linear(60, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(self.emb(ids).transpose(1, 2))))  # (N, 6, 9)
        x = torch.relu(self.conv2(x.reshape(-1, 3, 6, 3)))  # (N, 4, 4, 2)
        return self.head(torch.nn.functional.pad(x.flatten(1), (0, 28)))


def zoo_ids() -> Tensor:
    return torch.arange(4 * 9).reshape(4, 9) * 7 % 11


def write(folder: Path, model: nn.Module, storage: Storage | None = None) -> Path:
    """Freeze and write `model`, as delivery does."""
    storage = storage or Storage()
    folder.mkdir(parents=True, exist_ok=True)
    frozen = bitstill.freeze(model, storage.leftovers)
    write_artifact_files(folder, contents_of(frozen), {"architecture": type(model).__name__}, storage)
    return folder


@pytest.fixture
def zoo() -> Zoo:
    return Zoo()


@pytest.fixture(scope="session")
def make_zoo() -> Callable[[], Zoo]:
    return Zoo


@pytest.fixture
def ids() -> Tensor:
    return zoo_ids()


@pytest.fixture(scope="session")
def write_artifact() -> Callable[..., Path]:
    return write


def bits_of(x: Any) -> bytes:
    """Exact bits of a tensor or array: unlike ==, tells -0.0 from 0.0 and compares NaN."""
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    return array.tobytes()  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def exact() -> Callable[[Any], bytes]:
    return bits_of
