"""Masks that move while a stage trains, by a schedule of the sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from bitstill.constraints import Count, Range, check_fields
from bitstill.model.prune import move_masks
from bitstill.schedules import Scheduled, at


@dataclass(frozen=True)
class Pruning:
    """Iterative magnitude pruning (Zhu and Gupta 2017): masks are placed anew every few steps, at a growing sparsity.

    All weights stay in memory, so that a pruned weight comes back if important ones shrink below it. What happens to it
    meanwhile is the layers' `Prune.gradient`: with "masked" it receives no gradient, but SGD's momentum from before still
    moves it for a while, and weight decay shrinks it.

    Args:
        sparsity: fraction of zeros, a number or a schedule over the stage: `Cubic(0, 0.9, until=0.75)`, `Linear`, or a number
            for one-shot pruning at the stage's first step.
        model: whose masks.
        every: steps between two placements.
        until: fraction of the stage after which masks stay as they are; the sparsity is then exactly that of the schedule.
    """

    sparsity: Annotated[Scheduled, Range(least=0, below=1)]
    model: str = "student"
    every: Count = 16
    until: Annotated[float, Range(above=0, most=1)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def before(self, step: int, total: int, model: nn.Module) -> None:
        """Place the masks of `model` anew, if it is time.

        Args:
            step: the step that is about to be taken, from 0.
            total: steps of the stage.
            model: prepared, with layers that prune.

        Raises:
            SpecError: no layer prunes, or N:M does not divide one.
        """
        last = max(0, round(self.until * total) - 1)
        if step == last:
            self.finish(model)
        elif step < last and step % self.every == 0:
            move_masks(model, at(self.sparsity, step / total))

    def finish(self, model: nn.Module) -> None:
        """Place the masks of `model` as they are at the end of the stage, as far as its weights allow to say."""
        move_masks(model, at(self.sparsity, self.until))
