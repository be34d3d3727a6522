"""What a run would do to each layer and how many bytes it would deliver, without training."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitstill.artifact.reader import read
from bitstill.artifact.size import size_report, to_json
from bitstill.artifact.writer import Storage, write
from bitstill.data.text import TextOptions
from bitstill.decode import encode
from bitstill.deliver.load_task import task_for
from bitstill.model.contents import contents_of
from bitstill.model.lifecycle import freeze, report
from bitstill.recipes import Recipe
from bitstill.run.roles import ModelLike, rehearse, resolve_models, stages_for
from bitstill.train.settings import Settings


def dry_run(
    recipe: Recipe,
    task_name: str,
    models: Mapping[str, ModelLike],
    settings: Settings,
    storage: Storage,
    data: str | None = None,
    text: TextOptions | None = None,
    augmented: str | None = None,
) -> dict[str, Any]:
    """Plan the run, compress the untrained student and pack it: its bytes are those of the trained one.

    Only entropy coding, points shared out by gradient and what is split within a budget depend on training; with them the bytes
    are an estimate.

    Returns:
        Stages with their steps, every parameter with what would happen to it, and the size report.

    Raises:
        BitstillError: what `compress` would refuse before it trains, but for an untrained student, which has the same bytes.
    """
    task = task_for(task_name, models, data, text, augmented=augmented)
    cast = resolve_models(recipe, models, settings.seed, task)
    stages = stages_for(recipe, cast, task, untrained=True)
    student = rehearse(stages, cast.networks, task)["student"]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), contents_of(freeze(student, storage.leftovers)), {}, storage)
        size = size_report(read(folder))
    return {
        "recipe": encode(recipe),
        "task": task.name,
        "stages": [{"name": stage.name, "steps": stage.total_steps(len(task.train))} for stage in stages],
        "parameters": [encode(row) for row in report(student).rows],
        "size": to_json(size),
    }
