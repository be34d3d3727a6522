"""The samples of each step: a pure function of (seed, stage, step), so that any batch can be reproduced."""

from __future__ import annotations

import torch
from torch import Tensor

from bitstill.data.shuffle import permutation
from bitstill.data.task import Split

POOL = 50
"""Number of batches sorted by length together: almost no padding, yet new batches every epoch."""


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Full batches in a split, at least one."""
    return max(1, samples // batch_size)


class Sampler:
    """Batches of one stage, reshuffled every epoch; the incomplete last one is dropped.

    Samples of similar length are batched together: each pool of 50 batches is sorted by length and cut, and the batches are
    shuffled.

    Args:
        split: source of the samples.
        batch_size: samples per batch.
        names: keys of the order besides the epoch: seed, stage.
    """

    def __init__(self, split: Split, batch_size: int, *names: object) -> None:
        self.lengths, self.samples, self.batch_size, self.names = split.lengths, len(split), batch_size, names
        self._epoch: int | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices of the samples of a step, int64 (batch_size,), or all samples if there are fewer."""
        epoch, place = divmod(step, steps_per_epoch(self.samples, self.batch_size))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def _shuffled(self, epoch: int) -> Tensor:
        order = permutation(self.samples, *self.names, epoch)
        if self.lengths is None or self.samples < self.batch_size:
            return order
        full = order[: self.samples // self.batch_size * self.batch_size]
        pools = [pool[self.lengths[pool].argsort(stable=True)] for pool in full.split(POOL * self.batch_size)]
        batches = torch.cat(pools).view(-1, self.batch_size)
        return batches[permutation(len(batches), *self.names, epoch, "batches")].flatten()
