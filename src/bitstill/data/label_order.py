"""Check that a model and a task number their classes the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitstill.data.objective import Objective
from bitstill.errors import DataError


def check_label_order(id2label: Any, objective: Objective, where: str) -> None:
    """Refuse a model that numbers its classes differently, a common trap with entailment models.

    Names are compared without case. Names that only one side has are ignored: LABEL_0 may be any class. If the task's classes
    are named by numbers from 0, a model's class named by a number has that index.

    Args:
        id2label: names of the model's outputs by index, as in a transformers config; anything else is not checked.
        objective: the objective of the task.
        where: location named in errors.

    Raises:
        DataError: both have the same number of outputs, but a shared name has a different index.
    """
    if not isinstance(id2label, Mapping) or len(id2label) != len(objective.label_names):
        return
    theirs = {str(name).strip().lower(): int(index) for index, name in id2label.items()}
    ours = {name.strip().lower(): index for index, name in enumerate(objective.label_names)}
    if list(ours) == [f"label_{index}" for index in range(len(ours))]:
        ours |= {str(index): index for index in range(len(ours))}
    if any(ours.get(name, index) != index for name, index in theirs.items()):
        fix = "Reorder the rows of its classifier and its id2label, or fine-tune another model for the task."
        order = ", ".join(sorted(theirs, key=theirs.__getitem__))
        expected = f"labels in the order {', '.join(map(str.lower, objective.label_names))}"
        raise DataError(expected, given=order, where=where, fix=fix)
