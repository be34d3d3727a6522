"""Any column of labels: its classes are exactly the distinct values in the documented order, or one error is raised."""

from __future__ import annotations

import csv
import io
import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstill.data.file_readers import read_table
from bitstill.data.text_labels import (
    FEW_CLASSES,
    LARGEST_NUMBER,
    LabelColumn,
    as_classes,
    as_values,
    class_names,
    kind_of,
    parsed,
)
from bitstill.errors import DataError

names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=4)
whole = st.one_of(st.integers(0, 5), st.integers(-2, 2_000), st.integers())
floats = st.one_of(whole.map(lambda number: float(number % 10_000)), st.floats())
columns = st.one_of(
    *[st.lists(values, min_size=1, max_size=30) for values in (names, st.sampled_from(["a", "B", "b", "7"]), whole, floats)],
    *[
        st.lists(values, min_size=1, max_size=30)
        for values in (st.booleans(), st.sampled_from(["0", "1", "10", "2", "02", "1.0", "x", "TRUE", "false"]))
    ],
    st.lists(st.one_of(names, whole, floats, st.booleans(), st.none(), st.lists(whole, max_size=2)), min_size=1, max_size=5),
)


def read(values: list[Any]) -> tuple[tuple[str, ...], list[int]] | None:
    """Class names and the class of each row; None if the labels are values."""
    column = parsed({"train": LabelColumn(values, "here")}, None)["train"]
    if kind_of(column.values) == "regression":
        assert as_values(column).isfinite().all()
        return None
    classes = class_names(column)
    named = any(isinstance(value, str) for value in column.values)
    return classes, as_classes(column, classes, named=named).tolist()


def meanings(values: list[Any]) -> list[Any]:
    """Meaning of each label, computed independently: if all strings are numbers, or true and false, they are read as such."""
    if not all(isinstance(value, str) for value in values):
        return values
    if all(value.lower() in ("true", "false") for value in values):
        return [value.lower() == "true" for value in values]
    bare = [value.lstrip("+-") for value in values]
    plain = all(set(value) <= set("0123456789+-.eE") for value in values)
    plain = plain and not any(value[:1] == "0" and value[1:2].isdigit() for value in bare)
    try:
        return [float(Decimal(value)) for value in values] if plain else values
    except InvalidOperation:
        return values


@given(columns)
def test_classes_are_the_distinct_values_in_order_or_one_error(values):
    try:
        result = read(values)
    except DataError as error:
        message = str(error)
    else:
        check(values, result)
        return
    assert message.startswith("here: wanted ") and "\n" not in message and len(message) < 500


def check(values: list[Any], result: tuple[tuple[str, ...], list[int]] | None) -> None:
    if result is None:
        assert any(float(value) % 1 for value in values), "values are numbers, and one has a fraction"
        return
    classes, places = result
    meant = meanings(values)
    assert len({type(value) for value in meant} - {float}) <= 1, "labels of one type"
    distinct = sorted(set(meant))
    assert places == [distinct.index(value) for value in meant]
    assert 2 <= len(classes) == len(set(classes)) == len(distinct) <= max(FEW_CLASSES, len(values) / 2)
    if not isinstance(distinct[0], (str, bool)):
        contiguous = distinct == list(range(len(distinct)))
        assert classes == tuple(f"LABEL_{int(n)}" if contiguous else str(int(n)) for n in distinct)
        assert contiguous or (min(distinct) >= 0 and max(distinct) <= LARGEST_NUMBER)
    else:
        assert classes == tuple(map(str, distinct))


@given(st.lists(st.one_of(st.integers(0, 5), st.sampled_from([0.0, 1.0, 2.5])), min_size=2, max_size=20))
def test_csv_and_json_say_the_same_of_numbers(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("columns")
    text = io.StringIO()
    csv.writer(text).writerows([["label"], *([value] for value in values)])
    (folder / "a.csv").write_text(text.getvalue(), newline="")
    (folder / "a.jsonl").write_text("".join(json.dumps({"label": value}) + "\n" for value in values))
    results = []
    for kind in ("csv", "jsonl"):
        try:
            results.append(read(read_table([folder / f"a.{kind}"])["label"]))
        except DataError as error:
            results.append((error.wanted,))
    assert results[0] == results[1]


@pytest.mark.parametrize("value", [math.nan, None, 10**400, -math.inf, [[]], b"a"])
def test_what_is_no_label_is_named_by_its_row(value):
    with pytest.raises(DataError, match=r"here: wanted .*, got .* in row 2|got numbers? .*row 2"):
        read([0, 1, value])
