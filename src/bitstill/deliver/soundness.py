"""Checks for useless results, which a run warns about, or refuses if it is strict.

All checks read the figures of a report, except for the check of a teacher before training, which compares the teacher with the
constant answer on resamples of the validation split.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bitstill.data.task import Split, Task, predict
from bitstill.errors import BitstillWarning, TrainingError

RESAMPLES, LEVEL = 100, 0.95
"""Number of resamples of a validation split, and the fraction on which a teacher must beat the constant answer."""
SAMPLES = 512
"""Number of validation samples for judging a teacher: enough to tell it from a constant answer, and fast."""
BULK = 3.0
"""Ratio of file size without header to size of the codes above which a file is far above its ideal size."""


def teacher_warnings(teacher: nn.Module, task: Task) -> list[str]:
    """Warnings about a teacher that is not clearly better than the best constant answer on the validation split.

    A clearly better teacher beats it on the split and on 95 of 100 resamples of the split with replacement (Efron 1979).

    Args:
        teacher: the teacher as used in training.
        task: a task with labels.
    """
    if task.objective.label_loss() is None:
        return []
    objective, split = task.objective, _sample(task.validation)
    outputs, labels = predict(teacher, task, split), split.labels
    constant = objective.constant_output(task.train.labels)
    constants = constant.expand(len(split), *constant.shape)

    def gain(rows: torch.Tensor) -> float:
        theirs, least = (objective.metrics(x[rows], labels[rows])[objective.decides] for x in (outputs, constants))
        return theirs - least

    generator = torch.Generator().manual_seed(0)
    resamples = [torch.randint(len(split), (len(split),), generator=generator) for _ in range(RESAMPLES)]
    if gain(torch.arange(len(split))) > 0 and sum(gain(rows) > 0 for rows in resamples) >= LEVEL * RESAMPLES:
        return []
    score, least = (objective.metrics(x, labels)[objective.decides] for x in (outputs, constants))
    return [
        f"The teacher is not clearly better than a constant answer: {objective.decides} {score:.2f}, constant {least:.2f}, on "
        f"{len(split):,} validation samples. It may be untrained, expect other inputs, or number the classes otherwise."
    ]


def _sample(split: Split) -> Split:
    """Random sample of at most `SAMPLES` rows of a split, the same in every run."""
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    inputs = {name: tensor[rows] for name, tensor in split.inputs.items()}
    return replace(
        split, inputs=inputs, labels=split.labels[rows], lengths=None if split.lengths is None else split.lengths[rows]
    )


def result_warnings(report: Mapping[str, Any]) -> list[str]:
    """Warnings about a delivered model that is useless.

    Args:
        report: contents of report.json.
    """
    return [*(_constant(report["delivered"]) or _far_below_teacher(report)), *_bulky(report.get("size"))]


def warn(messages: Sequence[str], strict: bool, where: str) -> None:
    """Issue `messages` as warnings.

    Args:
        messages: warnings of one or two sentences.
        strict: whether to raise an error instead.
        where: subject of the messages, for the error.

    Raises:
        TrainingError: there are messages, and the run is strict.
    """
    if messages and strict:
        fix = "Cure the cause, or run without strict to deliver all the same."
        raise TrainingError("a result without warnings", given=" ".join(messages), where=where, fix=fix)
    for message in messages:
        warnings.warn(message, BitstillWarning, stacklevel=2)


def _constant(delivered: Mapping[str, Any]) -> list[str]:
    """Warn about a student that predicts a single class, or is no better than the constant answer."""
    confusion = delivered.get("details", {}).get("confusion")
    name = delivered["metric"]
    if confusion is not None:
        counts = [sum(column) for column in zip(*confusion["rows"].values(), strict=True)]
        true = sum(any(row) for row in confusion["rows"].values())
        if true > 1 and sum(count > 0 for count in counts) == 1:
            answer = confusion["columns"][counts.index(max(counts))]
            return [
                f"The model answers class {answer} to all {delivered['samples']:,} test samples. It has collapsed or hardly "
                "trained: lower the learning rate, train longer, or weigh the classes."
            ]
    least = delivered.get("baseline", {}).get(name)
    if least is None or delivered["test"] > least:
        return []
    return [
        f"The model is no better than a constant answer: {name} {delivered['test']:.2f}, constant {least:.2f}. Train "
        "longer, or use more bits or another learning rate."
    ]


def _far_below_teacher(report: Mapping[str, Any]) -> list[str]:
    """Warn about a student below the midpoint between the constant answer and its teacher."""
    delivered, teacher = report["delivered"], report.get("teacher")
    least = delivered.get("baseline", {}).get(delivered["metric"])
    if teacher is None or least is None or teacher["test"] <= least or delivered["test"] >= (teacher["test"] + least) / 2:
        return []
    return [
        f"The model is far below its teacher: {delivered['metric']} {delivered['test']:.2f}, teacher {teacher['test']:.2f}, a "
        f"constant answer {least:.2f}. Train longer, or use more bits, a larger student or another learning rate."
    ]


def _bulky(size: Mapping[str, Any] | None) -> list[str]:
    """Warn about a file that is far larger than the codes of its quantized weights."""
    codes = 0 if size is None else size["by_kind"]["codes"]
    if size is None or not codes:
        return []
    content = size["file_bytes"] - size["by_kind"]["header"]
    if content <= BULK * codes:
        return []
    kind = max((kind for kind in size["by_kind"] if kind not in ("codes", "header")), key=lambda kind: size["by_kind"][kind])
    largest = f", the largest of them {size['largest_leftover'][0]}" if kind == "leftovers" else ""
    advice = {"leftovers": "Compress more layers, or store leftovers in float16", "scales": "Take larger groups for the scales"}
    return [
        f"The file is {content / codes:.1f} times as large as its codes alone: {size['by_kind'][kind]:,} bytes are "
        f"{kind}{largest}. {advice.get(kind, 'See `bitstill inspect`')}."
    ]
