"""Whether a model and a task mean the same classes by the same outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitstill.data.objective import Objective
from bitstill.errors import DataError


def check_label_order(id2label: Any, objective: Objective, where: str) -> None:
    """Refuse a model that means other classes by the same numbers: an old trap of models for entailment.

    Capitals do not count, and names that only one side has say nothing: LABEL_0 is whatever it was trained as. Where the task
    has numbers from 0 for names, a model's class that is called by a number is that number.

    Args:
        id2label: names of the model's outputs by number, as a config of transformers holds them; nothing is checked otherwise.
        objective: of the task.
        where: for errors.

    Raises:
        DataError: a name that both have is another output, of as many outputs.
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
