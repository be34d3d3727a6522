"""The metric of an artifact, measured again on its own task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bitstill.artifact.hub import resolve_folder
from bitstill.artifact.reader import read_config
from bitstill.data.catalogue import TASKS, TEXT
from bitstill.data.imported import import_network
from bitstill.data.task import Task, assess
from bitstill.data.text import TextOptions
from bitstill.decode import decode
from bitstill.deliver.load import load
from bitstill.deliver.load_task import task_for
from bitstill.errors import ArtifactError, SpecError, suggest


def evaluate(
    folder: str | Path,
    *,
    task: Task | str | None = None,
    model: nn.Module | str | None = None,
    data: str | Path | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Metric of an artifact on its task.

    Args:
        folder: an artifact, or "owner/name" on the hub.
        task: a task, its name or `package.module:Name`; None is the one that the artifact was made for, if it is bitstill's.
        model: the float network, or `package.module:Name`, where the architecture is not one of bitstill's.
        data: folder with local files for the task.
        split: "test" or "validation".

    Returns:
        Task, split, and what report.json says of the delivered model: the metric that decides, its "value", number of samples,
        all metrics, those of the best constant answer, and details such as figures per class.

    Raises:
        ArtifactError: the artifact is damaged, or its task is not one of bitstill's.
        SpecError: unknown split or task.
    """
    if split not in ("test", "validation"):
        raise SpecError("a known split", given=repr(split), where="split", fix=suggest(split, ("test", "validation")))
    folder = resolve_folder(folder)
    if not isinstance(task, Task):
        task = task_of(folder, data) if task is None else task_for(task, {"artifact": folder}, data)
    network = import_network(model, 0, "model")[0] if isinstance(model, str) else model
    part = task.test if split == "test" else task.validation
    assessment = assess(load(folder, network), task, part)
    return {"task": task.name, "split": split, "value": assessment.pop("test"), **assessment}


def task_of(folder: Path, data: str | Path | None = None) -> Task:
    """The task that the artifact in `folder` was made for, read as it was then.

    Args:
        folder: an artifact.
        data: a folder with local files.

    Raises:
        ArtifactError: its task is not one of bitstill's.
    """
    config = read_config(folder)
    name = config.get("task")
    if not isinstance(name, str) or name not in {*TASKS, TEXT}:
        raise ArtifactError(
            "an artifact of a known task",
            given=repr(name),
            where=str(folder),
            fix="Name its task, or load it with bitstill.load and evaluate it on your own data.",
        )
    options = decode(TextOptions, _current(config.get("task_options")), "config.json: task_options") if name == TEXT else None
    return task_for(name, {"artifact": folder}, data, options)


def _current(options: Any) -> Any:
    """Options of an artifact in today's words; older ones said whether labels were values, not what the objective was."""
    if not isinstance(options, dict) or "regression" not in options:
        return options
    objective = {True: "regression", False: "classification"}.get(options["regression"])
    return {**{key: value for key, value in options.items() if key != "regression"}, "objective": objective}
