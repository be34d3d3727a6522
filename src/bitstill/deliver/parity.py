"""Whether what was exported says the same as the artifact: on inputs that are made up, or on the artifact's own task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitstill.artifact.reader import Archive
from bitstill.data.task import predict
from bitstill.deliver.evaluate import task_of
from bitstill.deliver.load import load
from bitstill.errors import ArtifactError
from bitstill.program.heads import Head, head_of
from bitstill.program.samples import random_inputs

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Array]
"""Runs an exported network: inputs by name to its outputs."""
SAMPLES, LENGTHS = 16, (4, 32)
"""Of the inputs that a comparison makes up: how many, and tokens in each text."""
BATCH = 32
"""Samples at once on a task."""


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Args:
        samples: how many inputs.
        inputs: "random", or the task and the split that they are of.
        largest_difference: of two outputs.
        largest_output: of the artifact.
        tolerance: fraction of the latter that the former may be.
        same_label: fraction of inputs (of decisions, where labels are decided each by itself); of outputs that are equally
            large, the first counts. None without labels.
        metric: on a task, of the artifact and of what was exported.
    """

    samples: int
    inputs: str
    largest_difference: float
    largest_output: float
    tolerance: float
    same_label: float | None
    metric: tuple[str, float, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether the two say the same."""
        return self.largest_difference <= self.tolerance * self.largest_output


def compare_outputs(
    archive: Archive, run: Run, tolerance: float, *, on_task: bool = False, data: Path | None = None
) -> Compared:
    """Outputs of an exported network and of the artifact in torch.

    Args:
        archive: the artifact.
        run: what was exported from it.
        tolerance: largest difference that is let pass, as a fraction of the largest output.
        on_task: compare on the test split of the artifact's task, rather than on inputs that are made up.
        data: a folder with local files for the task.

    Raises:
        ArtifactError: they differ by more than the tolerance.
    """
    model = load(archive.folder)
    found = _on_task(archive, model, run, tolerance, data) if on_task else _on_random_inputs(archive, model, run, tolerance)
    if not found.passed:
        fix = "Nothing was written. Report it, please, with the artifact's config.json; bitstill.load runs it in torch."
        alike = f"outputs that differ by at most {tolerance} of the largest, {found.largest_output:.4g}"
        given = f"a difference of {found.largest_difference:.4g}"
        raise ArtifactError(alike, given=given, where=str(archive.folder), fix=fix)
    return found


def _on_random_inputs(archive: Archive, model: nn.Module, run: Run, tolerance: float) -> Compared:
    longest = min(LENGTHS[1], archive.config.get("max_position_embeddings", LENGTHS[1]) - 2)
    values = random_inputs(archive.config, SAMPLES, longest, shortest=LENGTHS[0])
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        answer = model(**tensors)[0] if "input_ids" in tensors else model(*tensors.values())
    return _compared(answer.float().numpy(), run(values), "random", tolerance, head_of(archive.config))


def _on_task(archive: Archive, model: nn.Module, run: Run, tolerance: float, data: Path | None) -> Compared:
    task = task_of(archive.folder, data)
    (only,) = ["input_ids"] if "model_type" in archive.config else list(random_inputs(archive.config, 1, 1))
    ours, theirs = (predict(network, task, task.test, BATCH) for network in (model, _Exported(run, only)))
    decides = task.objective.decides
    ours_value, theirs_value = (task.objective.metrics(outputs, task.test.labels)[decides] for outputs in (ours, theirs))
    return _compared(
        ours.numpy(),
        theirs.numpy(),
        f"{task.name}, test",
        tolerance,
        head_of(archive.config),
        (decides, ours_value, theirs_value),
    )


def _compared(
    wanted: Array,
    given: Array,
    inputs: str,
    tolerance: float,
    head: Head,
    metric: tuple[str, float, float] | None = None,
) -> Compared:
    largest, of = float(np.abs(given - wanted).max()), float(np.abs(wanted).max())
    ours, theirs = head.decisions(wanted), head.decisions(given)
    same = None if wanted.ndim != 2 or ours is None or theirs is None else float((ours == theirs).mean())
    return Compared(len(wanted), inputs, largest, of, tolerance, same, metric)


class _Exported(nn.Module):
    """What was exported, where a task expects a network in torch."""

    def __init__(self, run: Run, only: str) -> None:
        super().__init__()
        self.run, self.only = run, only

    def forward(self, *values: Tensor, **named: Tensor) -> Any:
        """Logits of the only input there is, or, of inputs by name, an output of transformers."""
        if values:
            return self._logits({self.only: values[0]})
        segments = torch.zeros_like(named["input_ids"])
        return SimpleNamespace(logits=self._logits({"token_type_ids": segments, **named}))

    def _logits(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.from_numpy(self.run({name: value.numpy() for name, value in values.items()}))
