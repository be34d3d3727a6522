"""The protocol of a loss, the function in a term of a stage."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bitstill.losses.taps import Output


class Loss(Protocol):
    """A pure function of the outputs of two models, usually a frozen dataclass, so that it can be printed and compared."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it needs a teacher; otherwise `target` may be None."""

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        """Compute the loss of one batch, a scalar.

        Args:
            student: output of the model that receives the gradient.
            target: output of the teacher, detached; None if the term has no teacher.
            labels: labels of the batch.
            progress: fraction of the stage done so far, for schedules.
        """

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the intermediate outputs it reads: the student's and the teacher's."""
