"""The protocol of an objective: losses, metrics and head of a kind of task.

A task owns its objective, and whatever depends on the kind of task asks it: recipes for losses, evaluation for metrics,
artifacts for the head to record. A new kind of task is one file that implements this protocol; built-in ones are in
`bitstill.data.objectives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, runtime_checkable

from torch import Tensor

from bitstill.errors import SpecError
from bitstill.losses.logits import Reduction
from bitstill.losses.loss import Loss
from bitstill.schedules import Scheduled

HeadKind = Literal["sample", "none"]
"""Head of a pretrained model: one row of outputs per sample, or none."""
Imitation = Literal["kl", "cross-entropy"]
"""Family of losses by which a student imitates its teacher's output: divergence at a temperature (Hinton et al. 2015), or
cross-entropy with the teacher's prediction. An objective has its own loss of each family."""


@dataclass(frozen=True)
class DetailTable:
    """A table of a report, such as one row of figures per class.

    Args:
        columns: headings of the figures.
        rows: figures by row heading; None where undefined.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | int | None, ...]]

    def to_json(self) -> dict[str, Any]:
        """The table as plain values."""
        return {"columns": list(self.columns), "rows": {name: list(figures) for name, figures in self.rows.items()}}


class Objective(Protocol):
    """Losses, metrics and head of a kind of task; usually a frozen dataclass."""

    @property
    def decides(self) -> str:
        """Name of the metric by which models are selected and compared; one of `metrics`, larger is better."""

    @property
    def width(self) -> int | None:
        """Number of outputs per sample (or per token); None accepts any."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the outputs in order; empty if they have none."""

    @property
    def head_kind(self) -> HeadKind:
        """Kind of head for models of transformers; `hf.auto_classes` maps it to a class."""

    @property
    def summary(self) -> str:
        """Short description for errors: "10 classes", "one value"."""

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Check the labels of a split.

        Raises:
            DataError: they are invalid for this objective; names the split `where`.
        """

    def read(self, output: object, batch: Mapping[str, Tensor]) -> Tensor:
        """Extract the relevant part of a model's output, one row per sample.

        Args:
            output: the model's return value for `batch`.
            batch: inputs, for example for the padding mask of a mean over positions.

        Raises:
            MatchError: the output has no such part.
        """

    def label_loss(self) -> Loss | None:
        """Loss on labels; None if there is nothing to learn from them."""

    def imitation_loss(self, kind: Imitation, temperature: Scheduled = 1.0, reduction: Reduction = "batchmean") -> Loss:
        """Loss by which a student imitates its teacher's output.

        Args:
            kind: the requested family of losses.
            temperature, reduction: as in `losses.logits`; ignored where the loss is a squared error.

        Raises:
            SpecError: the objective has no loss of that family (`refuse_imitation`).
        """

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of a whole split by name, larger is better.

        Args:
            outputs: return values of `read`, float32.
            labels: labels of the split.
        """

    def report(self, outputs: Tensor, labels: Tensor) -> dict[str, DetailTable]:
        """Tables of details for a whole split by title, such as figures per class and the confusion matrix."""

    def constant_output(self, labels: Tensor) -> Tensor:
        """Best constant output (outputs,), estimated from the training labels."""

    def head(self) -> dict[str, Any]:
        """Entries of `config.json` on the outputs, with the keys of transformers (`id2label`, `problem_type`)."""


@runtime_checkable
class WeighsClasses(Protocol):
    """An objective whose loss on labels supports class weights."""

    def balanced_weights(self, labels: Tensor) -> tuple[float, ...]:
        """Weights that give rare classes as much weight as frequent ones, from the training labels."""

    def with_class_weights(self, weights: tuple[float, ...]) -> Objective:
        """The same objective with these weights, in the order of its outputs.

        Raises:
            SpecError: the number of weights differs from the number of classes.
        """


def refuse_imitation(objective: Objective, kind: Imitation, fix: str) -> NoReturn:
    """Raise an error that `objective` has no loss of the family `kind`.

    Raises:
        SpecError: always.
    """
    name = type(objective).__name__
    raise SpecError("an objective whose outputs can be imitated", given=f"{name} for the loss {kind!r}", where=name, fix=fix)
