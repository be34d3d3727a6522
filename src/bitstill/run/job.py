"""The inputs of a run as data: recipe, models, task and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bitstill.artifact.writer import Storage
from bitstill.data.task import Task
from bitstill.data.text import TextOptions
from bitstill.recipes.recipe import Recipe
from bitstill.run.models import ModelLike
from bitstill.train.settings import Settings


@dataclass(frozen=True)
class Job:
    """Inputs of a run.

    Args:
        recipe: plans the stages.
        models: models by role.
        task: a task or its name; None where the recipe learns only from a corpus.
        settings: seed, precision, device and checkpoints.
        storage: storage options of the artifact.
        data: folder with local files, for a task given by name.
        text: columns, maximal length and so on, for the task "text".
        augmented: folder with variants of the task's training texts to train on as well.
        cache: folder for a tokenized corpus; None is next to the result.
        class_weights: weights of the loss on the task's labels, one per class; "balanced" computes them from the labels.
        strict: refuse a result that is worth little, rather than warn of it.
    """

    recipe: Recipe
    models: Mapping[str, ModelLike]
    task: Task | str | None = None
    settings: Settings = field(default_factory=Settings)
    storage: Storage = field(default_factory=Storage)
    data: str | Path | None = None
    text: TextOptions | None = None
    augmented: str | Path | None = None
    cache: str | Path | None = None
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    strict: bool = False
