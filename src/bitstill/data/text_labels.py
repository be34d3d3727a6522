"""Labels of text files: classes by name or number, lists of labels, values; read from columns and checked row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bitstill.errors import DataError

Kind = Literal["classification", "multi-label", "regression"]
SEPARATOR = ";"
"""Between the labels of one row where a cell can hold no list."""


def kind_of(values: Sequence[Any]) -> Kind:
    """What labels are for, by their type: lists, numbers with a fraction, or anything else."""
    if any(isinstance(value, list) for value in values):
        return "multi-label"
    return "regression" if any(isinstance(value, float) for value in values) else "classification"


def class_names(values: Sequence[Any], where: str) -> tuple[str, ...]:
    """Names of the classes that occur: strings, sorted; of numbers LABEL_0 to the largest.

    Raises:
        DataError: there are fewer than two.
    """
    names = _names(values)
    if len(names) < 2 and all(_is_label(value) for value in values):
        raise DataError(
            "at least two classes",
            given=f"only {values[0]!r}",
            where=where,
            fix="Name the right column with --label-column; for values instead of classes, set text.objective=regression.",
        )
    return names


def as_labels(values: Sequence[Any], names: Sequence[str] | None, where: str, *, named: bool = False) -> Tensor:
    """Labels as classes 0 .. len(names) - 1, or as values where `names` is None.

    Args:
        values: as read.
        names: of the classes, in order.
        where: for errors.
        named: whether `values` are those names, rather than their numbers.

    Returns:
        int64 (rows,), or float32 (rows,) values.

    Raises:
        DataError: labels out of range, unknown names, missing or not finite values.
    """
    if names is None:
        wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v)]
        if wrong:
            raise DataError("numbers as labels", given=_first_of(wrong), where=where, fix="Correct these rows.")
        return torch.tensor(values, dtype=torch.float32)
    numbers = _numbers(names, named)
    _check_known(values, numbers, names, where, named=named)
    return torch.tensor([numbers[value] for value in values])


def split_lists(values: Sequence[Any], separator: str, where: str) -> list[list[str | int]]:
    """The labels of each row: a list as it is, a text cut at `separator`, nothing where a cell of such a text is empty.

    Raises:
        DataError: a row holds something else.
    """
    textual = not any(isinstance(value, list) for value in values)
    wrong = [value for value in values if not (isinstance(value, list) or (textual and (value is None or _is_label(value))))]
    if wrong:
        fix = "Give a list in every row, an empty one where no label holds."
        raise DataError("lists of labels", given=_first_of(wrong), where=where, fix=fix)
    rows: list[list[str | int]] = []
    for value in values:
        cell = value.split(separator) if isinstance(value, str) else [] if value is None else value
        labels = cell if isinstance(cell, list) else [cell]
        rows.append([label.strip() if isinstance(label, str) else label for label in labels if label != ""])
    return rows


def multi_label_names(rows: Sequence[Sequence[Any]], where: str) -> tuple[str, ...]:
    """Names of the labels that occur in any row, as `class_names`.

    Raises:
        DataError: there are none.
    """
    labels = [label for row in rows for label in row]
    if not labels:
        fix = "Name the right column with --label-column."
        raise DataError("at least one label", given="empty lists only", where=where, fix=fix)
    return _names(labels)


def multi_hot(rows: Sequence[Sequence[Any]], names: Sequence[str], where: str, *, named: bool) -> Tensor:
    """Lists of labels as float32 (rows, labels), 1 where one holds.

    Args:
        rows: from `split_lists`.
        names: of the labels, in order.
        where: for errors.
        named: whether the lists hold those names, rather than their numbers.

    Raises:
        DataError: unknown labels.
    """
    rows = [[str(label) if named and isinstance(label, int) else label for label in row] for row in rows]
    numbers = _numbers(names, named)
    _check_known([label for row in rows for label in row], numbers, names, where, named=named)
    table = torch.zeros(len(rows), len(names))
    for row, labels in zip(table, rows, strict=True):
        row[[numbers[label] for label in labels]] = 1.0
    return table


def _is_label(value: object) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    if any(isinstance(value, str) for value in values):
        return tuple(sorted({str(value) for value in values if _is_label(value)}))
    largest = max((value for value in values if _is_label(value)), default=0)
    return tuple(f"LABEL_{index}" for index in range(largest + 1))


def _numbers(names: Sequence[str], named: bool) -> dict[Any, int]:
    return {name: index for index, name in enumerate(names)} if named else {index: index for index in range(len(names))}


def _check_known(values: Sequence[Any], numbers: dict[Any, int], names: Sequence[str], where: str, *, named: bool) -> None:
    wrong = [value for value in values if not _is_label(value) or value not in numbers]
    if wrong:
        wanted = f"labels {', '.join(map(repr, names))}" if named else f"labels 0 to {len(names) - 1}"
        fix = "Correct these rows; -1 marks the hidden labels of a published test set."
        raise DataError(wanted, given=_first_of(wrong), where=where, fix=fix)


def _first_of(wrong: Sequence[Any]) -> str:
    return f"{wrong[0]!r}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
