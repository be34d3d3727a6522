"""A stage as data: trained models, loss terms, duration, and actions on the models at its beginning.

A loss term is an edge between named models. Without a teacher it is supervised; two edges in opposite directions are mutual
learning. The teacher's end is always detached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from torch import nn

from bitstill.constraints import Count, Epochs, Positive, Range, check_fields
from bitstill.data.augmentation import Variants
from bitstill.data.corpus import Corpus
from bitstill.data.task import Task
from bitstill.errors import SpecError, suggest
from bitstill.losses.loss import Loss
from bitstill.schedules import Scheduled
from bitstill.train.optim import SGD, Optimizer
from bitstill.train.pruning import Pruning
from bitstill.train.sampler import steps_per_epoch

Source = Literal["task"] | Corpus | Variants
"""Training data of a stage: the task, a corpus of plain text, or the task with variants of its texts."""


def source_name(source: Source) -> str:
    """Name of a data source in reports."""
    return source if isinstance(source, str) else type(source).__name__.lower()


@dataclass(frozen=True)
class Term:
    """One loss between two named models.

    Args:
        loss: the loss function.
        student: model that receives the gradient.
        teacher: model to imitate, or None for the labels.
        weight: a number or a schedule.
        through: learned projection applied to the student's hidden states before the comparison, for a student whose width
            differs from the teacher's.
    """

    loss: Loss
    student: str = "student"
    teacher: str | None = None
    weight: Annotated[Scheduled, Range(least=0)] = 1.0
    through: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.loss.needs_teacher and self.teacher is None:
            raise SpecError(
                "a teacher",
                given="None",
                where=f"Term({type(self.loss).__name__})",
                fix="Name one: Term(..., teacher='teacher').",
            )

    @property
    def name(self) -> str:
        """Name in curves and errors."""
        return f"{self.student}/{type(self.loss).__name__}" + (f"<-{self.teacher}" if self.teacher else "")


class Action(Protocol):
    """A change of the models at the beginning of a stage; a frozen dataclass.

    A resumed run applies it again to rebuild the modules, then loads their tensors from the checkpoint.
    """

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Change `models`."""


@runtime_checkable
class Structural(Action, Protocol):
    """An action that can rebuild the structure of its models without their values, at less cost than `apply`."""

    def replay(self, models: dict[str, nn.Module], task: Task) -> None:
        """Change the structure of `models` only."""


@runtime_checkable
class Deciding(Structural, Protocol):
    """An action with a data-dependent choice, which the checkpoint stores and a resumed run repeats."""

    def decide(self, models: dict[str, nn.Module], task: Task, seed: int) -> Any:
        """Make the choice, and return it as plain values."""

    def repeat(self, models: dict[str, nn.Module], decision: Any) -> None:
        """Apply an earlier decision."""


def replay(action: Action, models: dict[str, nn.Module], task: Task) -> None:
    """Rebuild the modules that `action` produces, whatever values they hold."""
    if isinstance(action, Structural):
        action.replay(models, task)
    else:
        action.apply(models, task, 0)


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Args:
        name: unique in its recipe.
        train: names of the trained models.
        terms: loss terms, which are summed.
        data: training data: "task", a corpus of plain text, or variants of the task's texts.
        epochs: duration; a fraction is allowed. Or:
        steps: duration in optimizer steps. Exactly one of the two is given, unless both are None: then nothing is trained and
            only `begin` is applied.
        batch_size: samples per step, over all processes and accumulated parts.
        optimizer: optimizer settings; each stage builds its own.
        parameters: "all" parameters of the trained models, "weights" without the quantizers' learned tensors, or "learned",
            only those.
        clip_norm: clip the gradient to this global L2 norm; None does not.
        augment: apply the task's augmentation.
        validations: number of evaluations of the first trained model, in its delivered form on the validation split, evenly
            over the stage; None is once per epoch, at most 20.
        keep: "best" ends the stage with the best weights by validation, "last" with those of the last step. Where an earlier
            stage has trained the model, the initial weights of this one compete too, unless it begins by compressing them.
        pruning: schedule of the masks; None leaves them fixed.
        begin: actions at the beginning, in order.
    """

    name: str
    train: tuple[str, ...] = ("student",)
    terms: tuple[Term, ...] = ()
    data: Source = "task"
    epochs: Epochs | None = None
    steps: Count | None = None
    batch_size: Count = 128
    optimizer: Optimizer = SGD()
    parameters: Literal["all", "weights", "learned"] = "all"
    clip_norm: Positive | None = None
    augment: bool = True
    validations: Count | None = None
    keep: Literal["best", "last"] = "last"
    pruning: Pruning | None = None
    begin: tuple[Action, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, f"stage {self.name!r}")
        if self.epochs is not None and self.steps is not None:
            raise self._error("one of epochs and steps", f"epochs={self.epochs} and steps={self.steps}", "Drop one of them.")
        duration = self.epochs if self.epochs is not None else self.steps
        if duration is None:
            if self.terms:
                raise self._error("a duration", "neither epochs nor steps", "Give epochs=10, for example.")
            return
        if duration == 0:
            raise self._error("a duration above 0", str(duration), "Give at least one step, and an end.")
        if not self.terms:
            raise self._error("at least one term", "none", "A stage without a loss trains nothing.")
        if not self.train:
            raise self._error("at least one model to train", "none", "Name it in `train`.")
        if self.pruning is not None and self.pruning.model not in self.train:
            fix = suggest(self.pruning.model, self.train)
            raise self._error("a trained model to prune", repr(self.pruning.model), fix)
        if self.pruning is not None and self.keep == "best":
            fix = "The best weights may be those of a lower sparsity; follow with a stage without pruning that keeps its best."
            raise self._error("keep='last' while masks move", "'best'", fix)
        taught = {name for term in self.terms for name in (term.student, term.through) if name}
        for name in self.train:
            if name not in taught:
                raise self._error(
                    "a term for every trained model", f"none for {name!r}", "Add a term with student=" + repr(name)
                )
        for name in sorted(taught - set(self.train)):
            raise self._error("a trained model as every term's student", repr(name), suggest(name, self.train))

    def total_steps(self, samples: int) -> int:
        """Number of optimizer steps on a split of `samples`; the incomplete last batch of an epoch is dropped."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            return 0
        return max(1, round(self.epochs * steps_per_epoch(samples, self.batch_size)))

    def validate_every(self, samples: int) -> int:
        """Steps between two evaluations of the delivered form."""
        total = self.total_steps(samples)
        if self.validations is not None:
            return max(1, total // self.validations)
        return max(min(steps_per_epoch(samples, self.batch_size), total), total // 20, 1)

    def check_models(self, models: Mapping[str, nn.Module]) -> None:
        """Raise `SpecError` if the stage names an unknown model."""
        named = {*self.train, *(name for t in self.terms for name in (t.student, t.teacher, t.through) if name)}
        for name in sorted(named):
            if name not in models:
                raise self._error("a known model", repr(name), suggest(name, models))

    def _error(self, wanted: str, given: str, fix: str) -> SpecError:
        return SpecError(wanted, given=given, where=f"stage {self.name!r}", fix=fix)
