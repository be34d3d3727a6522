"""Random numbers as tensors, pure functions of (seed, stage, step, sample); see `bitstill.rng`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill import rng
from bitstill.rng import derive


def permutation(count: int, *names: object) -> Tensor:
    """Random permutation of 0 .. count - 1, int64 (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive(*names)))


def uniform(key: int, samples: Tensor, draws: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 (N, draws), for sample indices int64 (N,); see `rng.uniform`."""
    return torch.from_numpy(rng.uniform(key, samples.numpy(), draws))
