"""Pruning during a stage: masks are recomputed along a schedule of the sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from bitstill.constraints import Count, Range, check_fields
from bitstill.model.prune import move_masks
from bitstill.schedules import Scheduled, at


@dataclass(frozen=True)
class Pruning:
    """Iterative magnitude pruning (Zhu and Gupta 2017): masks are recomputed every few steps, at a growing sparsity.

    All weights stay in memory, so that a pruned weight returns if important ones shrink below it. Its gradient meanwhile is
    set by the layers' `Prune.gradient`: with "masked" it receives none, but SGD's earlier momentum still moves it for a
    while, and weight decay shrinks it.

    Args:
        sparsity: fraction of zeros, a number or a schedule over the stage: `Cubic(0, 0.9, until=0.75)`, `Linear`, or a number
            for one-shot pruning at the stage's first step.
        model: model whose masks move.
        every: steps between two updates of the masks.
        until: fraction of the stage after which masks stay fixed; the sparsity is then exactly that of the schedule.
    """

    sparsity: Annotated[Scheduled, Range(least=0, below=1)]
    model: str = "student"
    every: Count = 16
    until: Annotated[float, Range(above=0, most=1)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def before(self, step: int, total: int, model: nn.Module) -> None:
        """Update the masks of `model` if an update is due.

        Args:
            step: the coming step, from 0.
            total: number of steps of the stage.
            model: prepared model whose layers prune.

        Raises:
            SpecError: no layer prunes, or an N:M group does not divide a row.
        """
        last = max(0, round(self.until * total) - 1)
        if step == last:
            self.finish(model)
        elif step < last and step % self.every == 0:
            move_masks(model, at(self.sparsity, step / total))

    def finish(self, model: nn.Module) -> None:
        """Set the masks of `model` to the final sparsity, as chosen by its present weights."""
        move_masks(model, at(self.sparsity, self.until))
