"""An objective: what a task asks of a model.

A task owns one, and everything that depends on the kind of task asks it: recipes for their losses, evaluation for its metrics,
artifacts for the head that they record. A new kind of task is one file that keeps this contract; those of bitstill are in
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
"""The head that a pretrained model needs: one row of outputs per sample, or none at all."""
Imitation = Literal["kl", "cross-entropy"]
"""How a student imitates its teacher's output: the divergence at a temperature (Hinton et al. 2015), or the cross-entropy with
what the teacher predicts. An objective serves each by its own loss of that family."""


@dataclass(frozen=True)
class DetailTable:
    """A table of a report, such as one row of figures per class.

    Args:
        columns: headings of the figures.
        rows: figures by row heading; None where one is not defined.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | int | None, ...]]

    def to_json(self) -> dict[str, Any]:
        """The table as plain values."""
        return {"columns": list(self.columns), "rows": {name: list(figures) for name, figures in self.rows.items()}}


class Objective(Protocol):
    """What a task asks of a model; usually a frozen dataclass."""

    @property
    def decides(self) -> str:
        """The metric by which models are chosen and compared: one of those of `metrics`, larger is better."""

    @property
    def width(self) -> int | None:
        """Outputs of a model per sample (or per token); None where any number will do."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the outputs in order; empty where they have none."""

    @property
    def head_kind(self) -> HeadKind:
        """The head by which a model of transformers answers; `hf.auto_classes` knows the class that has it."""

    @property
    def summary(self) -> str:
        """What is asked, in few words for errors: "10 classes", "one value"."""

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Refuse labels of a split that are not this objective's.

        Raises:
            DataError: naming the split `where`.
        """

    def read(self, output: object, batch: Mapping[str, Tensor]) -> Tensor:
        """The part of a model's output that counts, one row per sample.

        Args:
            output: whatever the model returned for `batch`.
            batch: inputs, for what depends on them, such as a mean over the positions that are no padding.

        Raises:
            MatchError: the model returned something else.
        """

    def label_loss(self) -> Loss | None:
        """The loss of outputs on labels; None where labels teach nothing."""

    def imitation_loss(self, kind: Imitation, temperature: Scheduled = 1.0, reduction: Reduction = "batchmean") -> Loss:
        """The loss by which a student imitates its teacher's output.

        Args:
            kind: the family that a recipe asks for.
            temperature, reduction: as in `losses.logits`; without meaning where the family comes down to a squared error.

        Raises:
            SpecError: the objective has no loss of that family (`refuse_imitation`).
        """

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of a whole split by name, larger is better.

        Args:
            outputs: what `read` returned, float32.
            labels: of the split.
        """

    def report(self, outputs: Tensor, labels: Tensor) -> dict[str, DetailTable]:
        """Details of a whole split by title, such as figures per class and the confusion table."""

    def constant_output(self, labels: Tensor) -> Tensor:
        """The output (outputs,) of the best model that ignores its input, judged by the training labels."""

    def head(self) -> dict[str, Any]:
        """What an artifact's `config.json` says of the outputs, by the keys of transformers (`id2label`, `problem_type`)."""


@runtime_checkable
class WeighsClasses(Protocol):
    """An objective whose loss on labels can weigh classes."""

    def balanced_weights(self, labels: Tensor) -> tuple[float, ...]:
        """Weights under which rare classes count as much as frequent ones, from the training labels."""

    def with_class_weights(self, weights: tuple[float, ...]) -> Objective:
        """The same objective with these weights, in the order of its outputs.

        Raises:
            SpecError: there are more or fewer weights than classes.
        """


def refuse_imitation(objective: Objective, kind: Imitation, fix: str) -> NoReturn:
    """Say that `objective` has no loss of the family `kind`.

    Raises:
        SpecError: always.
    """
    name = type(objective).__name__
    raise SpecError("an objective whose outputs can be imitated", given=f"{name} for the loss {kind!r}", where=name, fix=fix)
