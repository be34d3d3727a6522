"""Evaluation of an artifact on its task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from bitstill.artifact.format import RECIPE
from bitstill.artifact.hub import resolve_folder
from bitstill.artifact.reader import read_config
from bitstill.data.catalogue import TASKS, TEXT
from bitstill.data.imported import import_network
from bitstill.data.label_order import check_label_order
from bitstill.data.task import Task, assess
from bitstill.data.text import TextOptions
from bitstill.decode import decode
from bitstill.deliver.load import load
from bitstill.deliver.load_task import task_for
from bitstill.errors import ArtifactError, SpecError, suggest

_LONGEST_RECIPE = 1 << 16


def evaluate(
    folder: str | Path,
    *,
    task: Task | str | None = None,
    model: nn.Module | str | None = None,
    data: str | Path | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Evaluate an artifact on its task.

    Args:
        folder: an artifact, or "owner/name" on the hub.
        task: a task, its name or `package.module:Name`; None is the artifact's own task, if that is built in.
        model: the float network, or `package.module:Name`, if the architecture is not built in.
        data: folder with local files for the task; None is the one named in recipe.yaml, if it still exists.
        split: "test" or "validation".

    Returns:
        Task, split, and the entries of report.json on the delivered model: the deciding metric, its "value", number of samples,
        all metrics, those of the best constant answer, and details such as figures per class.

    Raises:
        ArtifactError: the artifact is damaged, or its task is not built in.
        DataError: the task's labels are in another order than the artifact's.
        SpecError: unknown split or task.
    """
    if split not in ("test", "validation"):
        raise SpecError("a known split", given=repr(split), where="split", fix=suggest(split, ("test", "validation")))
    folder = resolve_folder(folder)
    if not isinstance(task, Task):
        task = task_of(folder, data) if task is None else task_for(task, {"artifact": folder}, data)
    check_label_order(read_config(folder).get("id2label"), task.objective, str(folder))
    network = import_network(model, 0, "model")[0] if isinstance(model, str) else model
    part = task.test if split == "test" else task.validation
    assessment = assess(load(folder, network), task, part)
    return {"task": task.name, "split": split, "value": assessment.pop("test"), **assessment}


def task_of(folder: Path, data: str | Path | None = None) -> Task:
    """Load the task of the artifact in `folder`, with the options of its training.

    Args:
        folder: an artifact.
        data: folder with local files, as for `evaluate`.

    Raises:
        ArtifactError: its task is not built in.
    """
    config = read_config(folder)
    name = config.get("task")
    if not isinstance(name, str) or name not in {*TASKS, TEXT}:
        raise ArtifactError(
            "an artifact of a known task",
            given=repr(name),
            where=str(folder),
            fix="Name its task, or load the artifact with bitstill.load and evaluate it on your own data.",
        )
    options = decode(TextOptions, _current(config), "config.json: task_options") if name == TEXT else None
    return task_for(name, {"artifact": folder}, _data_of(folder) if data is None else data, options)


def _data_of(folder: Path) -> str | None:
    """Folder of local files named in recipe.yaml, if it still exists."""
    try:
        with open(folder / RECIPE, encoding="utf-8") as file:
            content = yaml.safe_load(file.read(_LONGEST_RECIPE))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    data = content.get("data") if isinstance(content, dict) else None
    return data if isinstance(data, str) and Path(data).is_dir() else None


def _current(config: Mapping[str, Any]) -> Any:
    """Task options in the current format.

    Older artifacts recorded `regression` instead of the objective, and no classes that were numbers.
    """
    options = config.get("task_options")
    if not isinstance(options, dict):
        return options
    if "regression" in options:
        objective = {True: "regression", False: "classification"}.get(options["regression"])
        options = {**{key: value for key, value in options.items() if key != "regression"}, "objective": objective}
    names = config.get("id2label")
    if (
        options.get("classes") is None
        and options.get("objective") != "regression"
        and isinstance(names, dict)
        and len(names) > 1
    ):
        options = {**options, "classes": [str(name) for name in names.values()]}
    return options
