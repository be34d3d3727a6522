"""Looking at an artifact after the fact: its metric, its layers, its bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bitstill.api import load
from bitstill.artifact.reader import Archive, read, read_config
from bitstill.artifact.size import size_report, to_json
from bitstill.decode import decode
from bitstill.errors import ArtifactError, SpecError, suggest
from bitstill.export.gguf import gguf_types
from bitstill.hub import located
from bitstill.loading import task_for
from bitstill.tasks import TASKS, TEXT
from bitstill.tasks.text import TextOptions
from bitstill.train.task import Task, evaluate


def evaluate_artifact(folder: str | Path, data: Path | None = None, split: str = "test") -> dict[str, Any]:
    """The metric of the artifact in `folder` on its own task.

    Raises:
        ArtifactError: the artifact is damaged, or its task is not one of bitstill's.
        SpecError: unknown split.
    """
    if split not in ("test", "validation"):
        raise SpecError("a known split", given=repr(split), where="--split", fix=suggest(split, ("test", "validation")))
    folder = located(folder)
    task, model = task_of(folder, data), load(folder)
    part = task.test if split == "test" else task.validation
    return {
        "task": task.name, "split": split, "samples": len(part), "metric": task.metric_name,
        "value": evaluate(model, task, part),
    }  # fmt: skip


def task_of(folder: Path, data: Path | None = None) -> Task:
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
            fix="Load it with bitstill.load and evaluate it on your own data.",
        )
    options = decode(TextOptions, config.get("task_options"), "config.json: task_options") if name == TEXT else None
    return task_for(name, {"artifact": folder}, data, options)


def inspect_artifact(folder: str | Path) -> dict[str, Any]:
    """Every packed layer and every leftover of the artifact in `folder`, with bytes. Needs no torch model.

    Raises:
        ArtifactError: as `artifact.reader.read`.
    """
    archive = read(located(folder))
    leftovers = [
        {"parameter": name, "shape": list(tensor.shape), "action": "float", "detail": str(tensor.dtype), "bytes": tensor.nbytes}
        for name, tensor in archive.leftovers.items()
    ]
    layers = [
        {"parameter": f"{layer.name}.weight", "shape": list(layer.shape), "action": "quantized", "detail": layer.quantizer}
        for layer in archive.layers.values()
    ]
    return {
        "architecture": archive.config.get("architecture"),
        "task": archive.config.get("task"),
        "parameters": layers + leftovers,
        "size": to_json(size_report(archive)),
        "gguf": _gguf(archive),
    }


def _gguf(archive: Archive) -> dict[str, Any]:
    """Whether llama.cpp's file format has a place for every layer: which, or why not."""
    try:
        return {"fits": True, "block_types": dict(Counter(gguf_types(archive).values()))}
    except ArtifactError as error:
        return {"fits": False, "why_not": f"{error.where}: wanted {error.wanted}, got {error.given}"}
