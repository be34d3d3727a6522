"""Labels of text files: classes by name or number, lists of labels, values; read from columns and checked row by row.

The classes of a column are its distinct values, with names sorted as text, integers in ascending order, and false before true.
Consecutive integers from 0 are named LABEL_0, LABEL_1 and so on; all other classes are named by their value.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bitstill.errors import DataError

Kind = Literal["classification", "multi-label", "regression"]
SEPARATOR = ";"
"""Separator of the labels in a cell, in files without lists."""
LARGEST_NUMBER = 1_000
"""Largest class if numbers have gaps: larger ones are ids, counts or values."""
LARGEST_VALUE = torch.finfo(torch.float32).max
FEW_CLASSES = 10
"""Number of classes that may occur only once each; more must occur twice on average."""
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_NO_NUMBER = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)
_TRUTH = {"true": True, "false": False}
_LISTED = 12
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_short = _REPR.repr


@dataclass(frozen=True)
class LabelColumn:
    """Labels of a part, as read.

    Args:
        values: one per row.
        where: location for errors.
        rows: row indices in the file; None if in order.
    """

    values: Sequence[Any]
    where: str
    rows: Sequence[int] | None = None

    def describe(self, wrong: Sequence[int]) -> str:
        """First of the values at `wrong`, its row, and the number of others."""
        row = wrong[0] if self.rows is None else self.rows[wrong[0]]
        more = f" and {len(wrong) - 1} more, first" if len(wrong) > 1 else ""
        return f"{_short(self.values[wrong[0]])}{more} in row {row}"

    def check(self, valid: Callable[[Any], bool], wanted: str, fix: str) -> None:
        """Check that all values are `valid`.

        Raises:
            DataError: a value is not; names the first row.
        """
        wrong = [index for index, value in enumerate(self.values) if not valid(value)]
        if wrong:
            raise DataError(wanted, given=self.describe(wrong), where=self.where, fix=fix)


def parsed(columns: Mapping[str, LabelColumn], kind: Kind | None) -> dict[str, LabelColumn]:
    """Convert labels to the type of the training part: strings that are all numbers, or all true and false, become those.

    Args:
        columns: columns by part. NaN is a missing label.
        kind: kind of labels, if given; under "classification" numbers with a fraction stay names of classes, and under
            "multi-label" nothing is converted.
    """
    missing = {part: [None if isinstance(v, float) and math.isnan(v) else v for v in c.values] for part, c in columns.items()}
    texts = [value for value in missing["train"] if value is not None]
    parse: Callable[[str], Any] | None = None
    if texts and all(isinstance(value, str) for value in texts) and kind != "multi-label":
        if all(value.lower() in _TRUTH for value in texts):
            parse = _truth_of
        elif _are_numbers(texts) and (kind != "classification" or all(float(value).is_integer() for value in texts)):
            parse = _number_of
    if parse is None:
        return {part: replace(columns[part], values=values) for part, values in missing.items()}
    return {
        part: replace(columns[part], values=[parse(value) if isinstance(value, str) else value for value in values])
        for part, values in missing.items()
    }


def kind_of(values: Sequence[Any]) -> Kind:
    """Kind of labels by their type: lists, numbers with a fraction, or anything else."""
    if any(isinstance(value, list) for value in values):
        return "multi-label"
    fractions = any(isinstance(value, float) and not value.is_integer() for value in values)
    return "regression" if fractions else "classification"


def class_names(column: LabelColumn) -> tuple[str, ...]:
    """Names of the classes in a column, in the order of this module.

    Raises:
        DataError: there are fewer than two, labels are missing or of several types, or they are ids or values, not classes.
    """
    names = _names(column)
    if len(names) < 2:
        fix = "Name the right column with --label-column; for values instead of classes, set text.objective=regression."
        given = f"only {_short(column.values[0])}"
        raise DataError("at least two classes", given=given, where=column.where, fix=fix)
    return names


def as_values(column: LabelColumn) -> Tensor:
    """Labels as float32 (rows,) values.

    Raises:
        DataError: one is no finite number.
    """
    column.check(_is_finite, "numbers as labels", "Correct these rows.")
    return torch.tensor([float(value) for value in column.values], dtype=torch.float32)


def as_classes(column: LabelColumn, names: Sequence[str], *, named: bool) -> Tensor:
    """Labels as int64 (rows,) classes.

    Args:
        column: labels as read.
        names: names of the classes, in order.
        named: whether labels are names, so that a number is never taken for an index.

    Raises:
        DataError: unknown labels.
    """
    return torch.tensor(_places(column, names, named))


def split_lists(column: LabelColumn, separator: str) -> list[list[str | int]]:
    """Labels of each row: a list, a text split at `separator`, or none for an empty cell.

    Raises:
        DataError: a row holds something else.
    """
    textual = not any(isinstance(value, list) for value in column.values)
    fix = "Give a list in every row, an empty one where no label holds."
    column.check(lambda v: isinstance(v, list) or (textual and (v is None or _is_label(v))), "lists of labels", fix)
    rows: list[list[str | int]] = []
    for value in column.values:
        cell = value.split(separator) if isinstance(value, str) else [] if value is None else value
        labels = cell if isinstance(cell, list) else [cell]
        rows.append([label.strip() if isinstance(label, str) else label for label in labels if label != ""])
    return rows


def with_numbers(lists: Mapping[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
    """Convert lists of labels to integers if all labels of the training part are integers."""
    labels = [label for row in lists["train"] for label in row]
    if not labels or not all(isinstance(label, str) and _WHOLE.fullmatch(label) for label in labels):
        return dict(lists)
    return {
        part: [[_number_of(label) if isinstance(label, str) else label for label in row] for row in rows]
        for part, rows in lists.items()
    }


def multi_label_names(rows: Sequence[Sequence[Any]], where: str) -> tuple[str, ...]:
    """Names of the labels that occur in any row, as `class_names`.

    Raises:
        DataError: there are none.
    """
    labels = _flat(rows, LabelColumn((), where))
    if not labels.values:
        fix = "Name the right column with --label-column."
        raise DataError("at least one label", given="empty lists only", where=where, fix=fix)
    return _names(labels)


def multi_hot(rows: Sequence[Sequence[Any]], names: Sequence[str], column: LabelColumn, *, named: bool) -> Tensor:
    """Lists of labels as float32 (rows, labels), 1 where one holds.

    Args:
        rows: from `split_lists`.
        names: names of the labels, in order.
        column: column of the rows, for errors.
        named: as in `as_classes`.

    Raises:
        DataError: unknown labels.
    """
    flat = _flat(rows, column)
    table = torch.zeros(len(rows), len(names))
    if flat.values:
        numbers = torch.tensor([index for index, row in enumerate(rows) for _ in row])
        table[numbers, torch.tensor(_places(flat, names, named))] = 1.0
    return table


def _flat(rows: Sequence[Sequence[Any]], column: LabelColumn) -> LabelColumn:
    numbers = column.rows or range(len(rows))
    labels = [(label, number) for row, number in zip(rows, numbers, strict=True) for label in row]
    return LabelColumn([label for label, _ in labels], column.where, [number for _, number in labels])


def _names(column: LabelColumn) -> tuple[str, ...]:
    """Distinct labels in the order of this module."""
    fix = "Correct these rows, or leave those without a text or a label out with --drop-empty."
    column.check(_is_label, "labels that are names, whole numbers, or true and false", fix)
    first = _type_of(column.values[0])
    column.check(lambda value: _type_of(value) is first, f"labels of one type, {first.__name__} as in the first row", fix)
    distinct = sorted(set(column.values))
    if len(distinct) > max(FEW_CLASSES, len(column.values) / 2):
        given = f"{len(distinct):,} different ones for {len(column.values):,} labels, such as {_short(distinct[0])}"
        fix = "Name the right column with --label-column; for values set text.objective=regression, or name text.classes."
        raise DataError("classes that occur more than once", given=given, where=column.where, fix=fix)
    if first is str:
        _check_spelling(distinct, column.where)
    if first is not int:
        return tuple(map(str, distinct))
    numbers = [int(value) for value in distinct]
    if numbers == list(range(len(numbers))):
        return tuple(f"LABEL_{number}" for number in numbers)
    _check_numbers(column)
    return tuple(map(str, numbers))


def _check_numbers(column: LabelColumn) -> None:
    fix = "Correct these rows; -1 marks the hidden labels of a published test set. Where they are classes, name text.classes."
    column.check(lambda value: value >= 0, "labels from 0 on", fix)
    fix = "Name the right column with --label-column; for values set text.objective=regression, or name text.classes."
    column.check(lambda value: value <= LARGEST_NUMBER, f"labels 0 to {LARGEST_NUMBER:,} where numbers have gaps", fix)


def _check_spelling(names: Sequence[str], where: str) -> None:
    """Check that no classes differ only in case or in surrounding spaces."""
    spellings: dict[str, str] = {}
    for name in names:
        other = spellings.setdefault(name.strip().casefold(), name)
        if other != name:
            fix = "Spell them alike, or name text.classes where both are classes."
            raise DataError("different classes", given=f"{_short(other)} and {_short(name)}", where=where, fix=fix)


def _places(column: LabelColumn, names: Sequence[str], named: bool) -> list[int]:
    places = {name: index for index, name in enumerate(names)}
    truths = {_TRUTH[name.lower()]: index for index, name in enumerate(names) if name.lower() in _TRUTH}
    by_place = not named and not truths and not any(_NUMBER.fullmatch(name) for name in names)

    def place_of(value: Any) -> int | None:
        if isinstance(value, str):
            return places.get(value)
        if isinstance(value, bool):
            return truths.get(value, int(value) if by_place and len(names) == 2 else None)
        if not _is_label(value):
            return None
        number = int(value)
        return places.get(str(number), number if by_place and 0 <= number < len(names) else None)

    indices = [place_of(value) for value in column.values]
    if None in indices:
        listed = ", ".join(_short(name) for name in names[:_LISTED]) + (" and others" if len(names) > _LISTED else "")
        numbered = by_place and not isinstance(column.values[indices.index(None)], str)
        wanted = f"labels 0 to {len(names) - 1}" if numbered else f"labels {listed}"
        fix = (
            "Correct these rows; -1 marks the hidden labels of a published test set. For values set text.objective=regression."
        )
        wrong = [index for index, place in enumerate(indices) if place is None]
        raise DataError(wanted, given=column.describe(wrong), where=column.where, fix=fix)
    return [place for place in indices if place is not None]


def is_number(value: str) -> bool:
    """Whether a cell holds only a number."""
    return _NUMBER.fullmatch(value) is not None


def _are_numbers(texts: Sequence[str]) -> bool:
    numbers = [_NUMBER.fullmatch(text) is not None for text in texts]
    return any(numbers) and all(number or _NO_NUMBER.fullmatch(text) for number, text in zip(numbers, texts, strict=True))


def _truth_of(text: str) -> Any:
    return _TRUTH.get(text.lower(), text)


def _number_of(text: str) -> Any:
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) or _NO_NUMBER.fullmatch(text) else text


def _is_label(value: object) -> bool:
    return isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST_VALUE


def _type_of(value: object) -> type:
    """Type of a label; integers count as int however they are written."""
    return int if isinstance(value, float) else type(value)
