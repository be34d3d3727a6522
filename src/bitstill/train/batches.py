"""The batch of a step, as one process sees it: a pure function of (seed, stage, step), hence reproducible after a resume."""

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
    """Indices, int64 (share,), of the samples that this process sees in part `part` of a batch.

    Args:
        whole: indices of the samples of a step, int64 (batch,).
        stage: named in errors.
        accelerator: number and index of processes.
        parts, part: of gradient accumulation.

    Raises:
        SpecError: the batch does not divide evenly.
    """
    check_shares(len(whole), stage, accelerator.num_processes, parts)
    shares = accelerator.num_processes * parts
    share = len(whole) // shares
    first = (accelerator.process_index * parts + part) * share
    return whole[first : first + share]


def check_shares(samples: int, stage: Stage, processes: int, parts: int) -> None:
    """Check that a batch divides evenly.

    Raises:
        SpecError: naming the stage.
    """
    if samples % (processes * parts):
        raise SpecError(
            f"a batch divisible by {processes} processes x {parts} parts",
            given=f"{samples} samples",
            where=f"stage {stage.name!r}",
            fix="Change the batch size, or `accumulate`.",
        )


def make_batch(task: Task, stage: Stage, indices: Tensor, step: int, seed: int, device: torch.device) -> Batch:
    """Training batch of the samples `indices` on `device`, augmented if the stage says so."""
    batch = task.train.take(indices)
    if stage.augment and task.augment is not None:
        batch = task.augment(batch, uniform(derive(seed, "augment", stage.name, step), indices, task.draws))
    return {name: tensor.to(device) for name, tensor in batch.items()}
