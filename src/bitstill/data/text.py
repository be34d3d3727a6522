"""Text tasks before tokenization: texts and labels read from files or from the hub, checked row by row.

Inputs depend on the model's tokenizer, so `hf.tokenize.tokenize` turns a `TextTask` into a `Task`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from bitstill.constraints import LARGEST_DURATION, Range, check_fields
from bitstill.data.file_readers import Table, read_table
from bitstill.data.objective import Objective
from bitstill.data.objectives import Classification, MultiLabel, Regression
from bitstill.data.part_files import part_files
from bitstill.data.shuffle import permutation
from bitstill.data.text_labels import (
    SEPARATOR,
    Kind,
    LabelColumn,
    as_classes,
    as_values,
    class_names,
    is_number,
    kind_of,
    multi_hot,
    multi_label_names,
    parsed,
    split_lists,
    with_numbers,
)
from bitstill.errors import DataError, SpecError, suggest

READABLE = (".csv", ".json", ".jsonl", ".parquet")
HELD_OUT, AT_MOST = 0.1, 2_000
"""Fraction of the training rows held out for validation, and its limit in rows."""


@dataclass(frozen=True)
class TextOptions:
    """Format of the user's own text files.

    Args:
        text: column with the text, or two columns with a pair.
        label: column with the label: a class (a name, an integer, true or false), several classes (a list; in CSV files
            separated by `separator`), or a value.
        objective: "classification", "multi-label" or "regression"; None infers it from the labels of the training files: lists
            are multi-label, numbers with a fraction are values, all others are classes (0.0 and 1.0, too).
        max_length: maximal length of a text in tokens, special tokens included.
        truncate: truncate longer texts; otherwise they are an error.
        classes: names of the classes in order; None uses those in the training files (ordered as in `data.text_labels`).
        separator: separator of the labels of a row, for "multi-label" in files without lists.
        drop_empty: drop rows without a text, or without a required label; otherwise they are an error.
    """

    text: tuple[str, ...] = ("text",)
    label: str = "label"
    objective: Kind | None = None
    max_length: Annotated[int, Range(least=4, most=LARGEST_DURATION)] = 128
    truncate: bool = False
    classes: tuple[str, ...] | None = None
    separator: str = SEPARATOR
    drop_empty: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.text) <= 2:
            fix = "Name the column of a text, or the two of a pair."
            raise SpecError("one or two text columns", given=str(self.text), where="TextOptions", fix=fix)


@dataclass(frozen=True, eq=False)
class TextSplit:
    """One part of the data.

    Args:
        texts: one list of strings per text column.
        labels: int64 (rows,) classes, float32 (rows, labels) of 0 and 1, or float32 (rows,) values.
        rows: row indices in the file; None if in order.
    """

    texts: tuple[list[str], ...]
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> TextSplit:
        """Select rows."""
        picked = rows.tolist()
        own = rows if self.rows is None else self.rows[rows]
        return TextSplit(tuple([column[row] for row in picked] for column in self.texts), self.labels[rows], own)


@dataclass(frozen=True, eq=False)
class TextTask:
    """A task whose inputs are strings.

    Args:
        name: name in reports.
        train, validation, test: as in `Task`.
        objective: as in `Task`.
        options: columns, maximal length and truncation.
        origin: as in `Task`.
    """

    name: str
    train: TextSplit
    validation: TextSplit
    test: TextSplit
    objective: Objective
    options: TextOptions
    origin: Mapping[str, Any] = field(default_factory=dict)


def load(data: Path | None, options: TextOptions) -> TextTask:
    """Load the user's own files: train.* and test.*, and validation.* or a part held out of train.

    Args:
        data: folder with CSV, JSON (one object per line) or parquet files.
        options: format of the files.

    Raises:
        DataError: files or columns are missing, or labels are invalid.
        SpecError: no folder is given.
    """
    if data is None:
        fix = "Add --data FOLDER with train.csv and test.csv (or .json, .jsonl, .parquet)."
        raise SpecError("a folder with your files", given="none", where="task text", fix=fix)
    parts = {part: read_part(data, part, required=part != "validation") for part in ("train", "validation", "test")}
    tables = {part: rows for part, rows in parts.items() if rows is not None}
    columns = {part: _columns(rows.table, options, f"text {part}") for part, rows in tables.items()}
    objective, labels, options = _labels({part: each.labels for part, each in columns.items()}, options)
    splits = {part: each.split(labels[part]) for part, each in columns.items()}
    origin = {
        part: {"files": list(tables[part].files), "rows": len(each), "dropped": each.dropped} for part, each in columns.items()
    }
    train, validation = (splits["train"], splits["validation"]) if "validation" in splits else held_out(splits["train"], "text")
    return TextTask("text", train, validation, splits["test"], objective, options, origin)


def _labels(columns: Mapping[str, LabelColumn], options: TextOptions) -> tuple[Objective, dict[str, Tensor], TextOptions]:
    """Objective and labels of every part; inferred choices become part of the options, so that loading can be repeated."""
    columns = parsed(columns, options.objective)
    kind = options.objective or kind_of(columns["train"].values)
    if kind == "regression":
        labels = {part: as_values(column) for part, column in columns.items()}
        return Regression(), labels, replace(options, objective=kind)
    if kind == "classification":
        named = any(isinstance(value, str) for value in columns["train"].values)
        names = options.classes or class_names(columns["train"])
        labels = {part: as_classes(column, names, named=named) for part, column in columns.items()}
        return Classification(len(names), names), labels, replace(options, objective=kind, classes=names)
    lists = with_numbers({part: split_lists(column, options.separator) for part, column in columns.items()})
    named = any(isinstance(label, str) for row in lists["train"] for label in row)
    names = options.classes or multi_label_names(lists["train"], columns["train"].where)
    labels = {part: multi_hot(rows, names, columns[part], named=named) for part, rows in lists.items()}
    return MultiLabel(names), labels, replace(options, objective=kind, classes=names)


def held_out(train: TextSplit, name: str) -> tuple[TextSplit, TextSplit]:
    """Hold out a tenth of `train`, at most 2,000 rows: (remaining, held out).

    Raises:
        DataError: there are fewer than two rows.
    """
    count = min(AT_MOST, math.ceil(HELD_OUT * len(train)))
    if count >= len(train):
        raise DataError("at least two training rows", given=str(len(train)), where=f"{name} train", fix="Add more data.")
    order = permutation(len(train), name, "validation")
    return train.take(order[count:]), train.take(order[:count])


@dataclass(frozen=True, eq=False)
class PartTable:
    """Rows of a part, and the names of their files."""

    table: Table
    files: tuple[str, ...]


def read_part(folder: Path, part: str, *, required: bool = True) -> PartTable | None:
    """Load a part from `part`.{parquet,csv,json,jsonl} in `folder`, or from its pieces; None if absent and not required.

    Raises:
        DataError: no such file, several that may be meant (`part_files`), or one that cannot be read.
    """
    paths = part_files(folder, part, READABLE)
    if paths:
        return PartTable(read_table(paths), tuple(path.name for path in paths))
    if not required:
        return None
    fix = "Point --data at the folder that holds them."
    raise DataError(f"{part}.parquet, .csv, .json or .jsonl", given="no such file", where=str(folder), fix=fix)


def split_of(table: Table, options: TextOptions, names: Sequence[str] | None, where: str) -> TextSplit:
    """Check the rows of a published set, whose labels are numbers; a few texts may be empty (QQP).

    Raises:
        DataError: a column is missing, a text is no string, or a label is not one of the task's.
    """
    columns = _columns(table, options, where, allow_empty=True)
    labels = as_values(columns.labels) if names is None else as_classes(columns.labels, names, named=False)
    return columns.split(labels)


@dataclass(frozen=True, eq=False)
class _Columns:
    """Texts and labels of a part, with row indices in the file if rows were dropped, and their number."""

    texts: tuple[list[str], ...]
    labels: LabelColumn
    dropped: int

    def __len__(self) -> int:
        return len(self.labels.values)

    def split(self, labels: Tensor) -> TextSplit:
        return TextSplit(self.texts, labels, None if self.labels.rows is None else torch.tensor(self.labels.rows))


def _columns(table: Table, options: TextOptions, where: str, *, allow_empty: bool = False) -> _Columns:
    for column in (*options.text, options.label):
        if column not in table:
            fix = f"{suggest(column, table)} Name it with --text-column or --label-column."
            raise DataError(f"a column {column!r}", given=str(list(table)), where=where, fix=fix)
    texts, labels = [table[column] for column in options.text], table[options.label]
    if not labels:
        raise DataError("at least one row", given="none", where=where, fix="Check the file.")
    rows = None
    if options.drop_empty:
        may_be_empty = options.objective == "multi-label" or any(isinstance(label, list) for label in labels)
        rows = [
            row
            for row, cells in enumerate(zip(*texts, labels if not may_be_empty else texts[0], strict=True))
            if not any(map(_is_empty, cells))
        ]
        texts, labels = [[column[row] for row in rows] for column in texts], [labels[row] for row in rows]
        if not rows:
            raise DataError("at least one row that is not empty", given="none", where=where, fix="Check the file.")
    for name, values in zip(options.text, texts, strict=True):
        _check_texts(values, f"{where}: {name}", rows, allow_empty)
    dropped = len(table[options.label]) - len(labels)
    return _Columns(tuple(texts), LabelColumn(labels, f"{where}: {options.label}", rows if dropped else None), dropped)


def _is_empty(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))


def _check_texts(values: Sequence[Any], where: str, rows: Sequence[int] | None, allow_empty: bool) -> None:
    """Check that a column holds texts: no other types, no empty ones, not only numbers.

    Raises:
        DataError: it does not; names the first such row.
    """
    number = (lambda row: row) if rows is None else rows.__getitem__
    wrong = [row for row, value in enumerate(values) if not isinstance(value, str) and not _is_empty(value)]
    if wrong:
        given = f"{repr(values[wrong[0]])[:80]} in row {number(wrong[0])}"
        raise DataError("a text in every row", given=given, where=where, fix="Correct the file.")
    empty = [row for row, value in enumerate(values) if _is_empty(value)]
    if empty and not (allow_empty and all(values[row] is not None for row in empty)):
        given = f"{len(empty)} empty, first in row {number(empty[0])}"
        fix = "Leave these rows out with --drop-empty: a model would learn their labels from nothing."
        raise DataError("a text in every row", given=given, where=where, fix=fix)
    if all(is_number(value) for value in values):
        given = f"numbers alone, {values[0][:80]} in row {number(0)}"
        fix = "Name the right column with --text-column."
        raise DataError("texts", given=given, where=where, fix=fix)
