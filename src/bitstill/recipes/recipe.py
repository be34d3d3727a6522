"""What `compress` needs from a recipe."""

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
    """What a recipe knows of a run when it plans its stages.

    Args:
        objective: the task's, which is asked for losses.
        models: who plays which role; a recipe that names layers reads their names here.
        untrained: roles whose weights are random where they decide; such a teacher is trained first.
    """

    objective: Objective
    models: Models = field(default_factory=dict)
    untrained: frozenset[str] = frozenset()


class Recipe(Protocol):
    """Settings, and a method that turns them into stages."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a model named "teacher" takes part."""

    @property
    def makes_student(self) -> bool:
        """Whether the recipe makes the student from the teacher where none is given."""

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """The stages of a run.

        Raises:
            BitstillError: the recipe does not go with the models or with the objective.
        """
