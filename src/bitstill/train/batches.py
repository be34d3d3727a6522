"""The batch of a step, as one process sees it: a function of (seed, stage, step), so that it can be made again at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitstill.data.shuffle import uniform
from bitstill.data.task import Batch, Task
from bitstill.errors import SpecError
from bitstill.rng import derive
from bitstill.train.stage import Stage

if TYPE_CHECKING:
    from accelerate import Accelerator


def share_of(whole: Tensor, stage: Stage, accelerator: Accelerator, parts: int = 1, part: int = 0) -> Tensor:
    """The indices, int64 (share,), that this process sees in part `part` of a batch.

    Args:
        whole: indices of the samples of a step, int64 (batch,).
        stage: for errors.
        accelerator: how many processes there are, and which this is.
        parts, part: gradient accumulation.

    Raises:
        SpecError: the batch cannot be shared out evenly.
    """
    shares = accelerator.num_processes * parts
    if len(whole) % shares:
        raise SpecError(
            f"a batch that {accelerator.num_processes} processes x {parts} parts can share evenly",
            given=f"{len(whole)} samples",
            where=f"stage {stage.name!r}",
            fix="Change the batch size, or `accumulate`.",
        )
    share = len(whole) // shares
    first = (accelerator.process_index * parts + part) * share
    return whole[first : first + share]


def make_batch(task: Task, stage: Stage, indices: Tensor, step: int, seed: int, device: torch.device) -> Batch:
    """The training batch of samples `indices`, augmented if the stage says so, on `device`."""
    batch = task.train.take(indices)
    if stage.augment and task.augment is not None:
        batch = task.augment(batch, uniform(derive(seed, "augment", stage.name, step), indices, task.draws))
    return {name: tensor.to(device) for name, tensor in batch.items()}
