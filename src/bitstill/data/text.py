"""Text with labels, before any tokenizer has seen it: read from files or from the hub, checked row by row.

What a model reads depends on its tokenizer, so a text task becomes a `Task` only when it meets one: `hf.tokenize.tokenize`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from bitstill.constraints import LARGEST_DURATION, Range, check_fields
from bitstill.data.objective import Objective
from bitstill.data.objectives import Classification, MultiLabel, Regression
from bitstill.data.shuffle import permutation
from bitstill.data.sources import quiet
from bitstill.data.text_labels import (
    SEPARATOR,
    Kind,
    as_labels,
    class_names,
    kind_of,
    multi_hot,
    multi_label_names,
    split_lists,
)
from bitstill.errors import DataError, SpecError, need_package, suggest

READERS = {".csv": "from_csv", ".json": "from_json", ".jsonl": "from_json", ".parquet": "from_parquet"}
HELD_OUT, AT_MOST = 0.1, 2_000
"""Share of the training rows that is held out for choices, and its limit."""


@dataclass(frozen=True)
class TextOptions:
    """How a user's own text files are read.

    Args:
        text: the column with the text, or two columns with a pair.
        label: the column with the label: a class (an integer from 0, or a name), several of them (a list; in CSV files
            separated by `separator`), or a value.
        objective: "classification", "multi-label" or "regression"; None decides by the type of the labels: lists are
            multi-label, numbers with a fraction are values, all others are classes.
        max_length: longest text in tokens, special ones included.
        truncate: cut longer texts off; else they are an error.
        classes: names of the classes in order, where labels are names; None takes those of the training files.
        separator: between the labels of a row, where objective is "multi-label" and a cell can hold no list.
    """

    text: tuple[str, ...] = ("text",)
    label: str = "label"
    objective: Kind | None = None
    max_length: Annotated[int, Range(least=4, most=LARGEST_DURATION)] = 128
    truncate: bool = False
    classes: tuple[str, ...] | None = None
    separator: str = SEPARATOR

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
        rows: where each was in its file; None is in order.
    """

    texts: tuple[list[str], ...]
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> TextSplit:
        """The given rows."""
        picked = rows.tolist()
        own = rows if self.rows is None else self.rows[rows]
        return TextSplit(tuple([column[row] for row in picked] for column in self.texts), self.labels[rows], own)


@dataclass(frozen=True, eq=False)
class TextTask:
    """A task whose inputs are strings.

    Args:
        name: for reports.
        train, validation, test: as in `Task`.
        objective: as in `Task`.
        options: columns, longest text, what to do with longer ones.
    """

    name: str
    train: TextSplit
    validation: TextSplit
    test: TextSplit
    objective: Objective
    options: TextOptions


def load(data: Path | None, options: TextOptions) -> TextTask:
    """A user's own files: train.* and test.*, and validation.* or a part held out of train.

    Args:
        data: a folder with CSV, JSON (one object per line) or parquet files.
        options: which columns hold what.

    Raises:
        DataError: files or columns are missing, or labels are not what they should be.
        SpecError: no folder.
    """
    if data is None:
        fix = "Add --data FOLDER with train.csv and test.csv (or .json, .jsonl, .parquet)."
        raise SpecError("a folder with your files", given="none", where="task text", fix=fix)
    parts = {part: read_files(data, part, required=part != "validation") for part in ("train", "validation", "test")}
    columns = {part: _columns(rows, options, f"text {part}") for part, rows in parts.items() if rows is not None}
    raw = {part: labels for part, (_, labels) in columns.items()}
    objective, labels, options = _labels(raw, options)
    splits = {part: TextSplit(texts, labels[part]) for part, (texts, _) in columns.items()}
    train, validation = (splits["train"], splits["validation"]) if "validation" in splits else held_out(splits["train"], "text")
    return TextTask("text", train, validation, splits["test"], objective, options)


def _labels(raw: Mapping[str, list[Any]], options: TextOptions) -> tuple[Objective, dict[str, Tensor], TextOptions]:
    """Objective and labels of every part; the names of classes become part of the options."""
    wheres = {part: f"text {part}: {options.label}" for part in raw}
    kind = options.objective or kind_of(raw["train"])
    if kind == "regression":
        return Regression(), {part: as_labels(values, None, wheres[part]) for part, values in raw.items()}, options
    if kind == "classification":
        named = any(isinstance(value, str) for value in raw["train"])
        names = options.classes or class_names(raw["train"], wheres["train"])
        labels = {part: as_labels(values, names, wheres[part], named=named) for part, values in raw.items()}
        return Classification(len(names), names), labels, replace(options, classes=names) if named else options
    lists = {part: split_lists(values, options.separator, wheres[part]) for part, values in raw.items()}
    named = any(isinstance(label, str) for row in lists["train"] for label in row)
    names = options.classes or multi_label_names(lists["train"], wheres["train"])
    labels = {part: multi_hot(rows, names, wheres[part], named=named) for part, rows in lists.items()}
    return MultiLabel(names), labels, replace(options, classes=names) if named else options


def held_out(train: TextSplit, name: str) -> tuple[TextSplit, TextSplit]:
    """A tenth of `train`, at most 2,000 rows, set apart: (what is left, what was held out).

    Raises:
        DataError: if there is nothing to share.
    """
    count = min(AT_MOST, math.ceil(HELD_OUT * len(train)))
    if count >= len(train):
        raise DataError("at least two training rows", given=str(len(train)), where=f"{name} train", fix="Add more data.")
    order = permutation(len(train), name, "validation")
    return train.take(order[count:]), train.take(order[:count])


def read_files(folder: Path, part: str, *, required: bool = True) -> Any:
    """The rows of `part`*.{parquet,csv,json,jsonl} in `folder` as a `datasets.Dataset`; None if absent and not required.

    Raises:
        DataError: no such file, several kinds of them, or one that cannot be read.
    """
    datasets = need_package("datasets", extra="all", purpose="text tasks")
    found = sorted(path for path in folder.glob(f"{part}*") if path.suffix in READERS) if folder.is_dir() else []
    suffixes = {path.suffix for path in found}
    if not found and not required:
        return None
    if len(suffixes) != 1:
        given = "no such file" if not found else f"several kinds: {', '.join(path.name for path in found)}"
        fix = "Point --data at the folder that holds them; keep one kind of file."
        raise DataError(f"{part}.parquet, .csv, .json or .jsonl", given=given, where=str(folder), fix=fix)
    try:
        suffix = suffixes.pop()
        # "NA" and "None" are words; only an empty cell is nothing.
        more = {"keep_default_na": False, "na_values": [""]} if suffix == ".csv" else {}
        with quiet(datasets):
            return getattr(datasets.Dataset, READERS[suffix])([str(path) for path in found], keep_in_memory=True, **more)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        given = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
        raise DataError("a readable file", given=given, where=str(found[0]), fix="Check the file.") from error


def split_of(rows: Any, options: TextOptions, names: Sequence[str] | None, where: str) -> TextSplit:
    """Rows of a published set, whose labels are numbers, as a checked split; a few of its texts may be empty (QQP).

    Raises:
        DataError: a column is missing, a text is no string, or a label is not one of the task's.
    """
    texts, labels = _columns(rows, options, where, allow_empty=True)
    return TextSplit(texts, as_labels(labels, names, f"{where}: {options.label}"))


def _columns(
    rows: Any, options: TextOptions, where: str, *, allow_empty: bool = False
) -> tuple[tuple[list[str], ...], list[Any]]:
    for column in (*options.text, options.label):
        if column not in rows.column_names:
            fix = f"{suggest(column, rows.column_names)} Name it with --text-column or --label-column."
            raise DataError(f"a column {column!r}", given=str(rows.column_names), where=where, fix=fix)
    texts = tuple(list(rows[column]) for column in options.text)
    for column, values in zip(options.text, texts, strict=True):
        wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
        if wrong:
            given = f"{values[wrong[0]]!r} in row {wrong[0]}"
            raise DataError("a text in every row", given=given, where=f"{where}: {column}", fix="Correct the file.")
        empty = [row for row, text in enumerate(values) if not text.strip()]
        if empty and not allow_empty:
            given = f"{len(empty)} empty, first in row {empty[0]}"
            fix = "Remove these rows: a model would learn their labels from nothing."
            raise DataError("a text in every row", given=given, where=f"{where}: {column}", fix=fix)
    labels = list(rows[options.label])
    if not labels:
        raise DataError("at least one row", given="none", where=where, fix="Check the file.")
    return texts, labels
