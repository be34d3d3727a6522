"""The protocol of a recipe, and what it knows of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from bitstill.data.objective import Objective
from bitstill.train.stage import Stage

Models = Mapping[str, nn.Module]


@dataclass(frozen=True)
class RunContext:
    """Models and objective of a run, from which a recipe plans its stages.

    Args:
        objective: objective of the task, which provides the losses.
        models: models by role; a recipe that names layers reads their names from them.
        untrained: roles whose weights, or whose classifier's, are random; such a teacher is trained first.
    """

    objective: Objective
    models: Models = field(default_factory=dict)
    untrained: frozenset[str] = frozenset()


class Recipe(Protocol):
    """Settings, and a method that turns them into stages."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the recipe uses a model named "teacher"."""

    @property
    def makes_student(self) -> bool:
        """Whether the recipe builds the student from the teacher if none is given."""

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """The stages of a run.

        Raises:
            BitstillError: the recipe does not fit the models or the objective.
        """
