"""What a run is asked to do, as data."""

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
    """What a run is asked to do.

    Args:
        recipe: its stages.
        models: by role.
        task: or its name; None where the recipe learns from a corpus alone.
        settings: how it is carried out.
        storage: how an artifact is stored.
        data: a folder with local files for a task that is named.
        text: columns, longest text and so on, for the task "text".
        augmented: a folder with variants of the task's training texts, which are trained on as well.
        cache: folder for a tokenized corpus; None is beside the result.
        class_weights: of the loss on the task's labels, one per class; "balanced" takes them from the training labels.
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
