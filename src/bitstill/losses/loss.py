"""The contract of a loss: what a term of a stage computes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bitstill.losses.taps import Output


class Loss(Protocol):
    """A pure function of two models' outputs, usually a frozen dataclass, so that it can be printed and compared."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares with a teacher; else `target` may be None."""

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            student: output of the model that receives the gradient.
            target: output of the teacher, detached; None where the term names none.
            labels: of the batch.
            progress: fraction of the stage that is done, for schedules.
        """

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Intermediate outputs that it reads, by name: the student's and the teacher's."""
