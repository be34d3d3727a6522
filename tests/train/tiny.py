"""A task and models small enough to train in a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitstill.data.objectives import Classification
from bitstill.data.task import Batch, Split, Task


def forward(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(batch["x"])
    return logits


def split(samples: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    labels = (x @ torch.tensor([[1.0, -1, 0.5, 0, 0, 2], [0, 1, -1, 1, 0, -1], [-1, 0, 1, -1, 1, 0]]).T).argmax(-1)
    return Split({"x": x}, labels)


def jitter(batch: Batch, u: Tensor) -> Batch:
    return {**batch, "x": batch["x"] + 0.1 * (u - 0.5)}


def task(*, augmented: bool = False, samples: int = 96) -> Task:
    augment = jitter if augmented else None
    return Task(
        "tiny", split(samples, 1), split(32, 2), split(64, 3), Classification(3), forward, augment, 6 if augmented else 0
    )


def network(seed: int, width: int = 8, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 3))
