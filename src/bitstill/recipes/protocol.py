"""What `compress` needs from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from torch import nn

from bitstill.train.stage import Stage

Models = Mapping[str, nn.Module]
NO_MODELS: Models = MappingProxyType({})


class Recipe(Protocol):
    """Settings, and a method that turns them into stages."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a model named "teacher" takes part."""

    @property
    def makes_student(self) -> bool:
        """Whether the recipe makes the student from the teacher where none is given."""

    def stages(self, *, train_teacher: bool, regression: bool = False, models: Models = NO_MODELS) -> tuple[Stage, ...]:
        """The stages.

        Args:
            train_teacher: put a stage in front that trains the teacher on the labels.
            regression: the task has values instead of classes.
            models: who plays which role; a recipe that names layers reads their names here.
        """
