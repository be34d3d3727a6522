"""A user's own text files: what is read, how labels are interpreted, and what is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from bitstill.data import text
from bitstill.data.catalogue import load_task
from bitstill.data.objectives import Classification, MultiLabel, Regression
from bitstill.data.text import TextOptions, TextSplit, TextTask, held_out
from bitstill.errors import DataError, MissingPackageError, SpecError

datasets = pytest.importorskip("datasets")
pd = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets and pyarrow

ROWS = [{"text": f"text {n}", "label": n % 2} for n in range(10)]
TEST = [{"text": "seen never", "label": 1}, {"text": "nor this", "label": 0}]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def write(folder: Path, kind: str = "json", **parts: list[dict[str, object]] | str) -> Path:
    """Write one file per part; a part may be given as its literal text."""
    folder.mkdir(exist_ok=True)
    for part, rows in parts.items():
        path = folder / f"{part}.{kind}"
        if isinstance(rows, str):
            path.write_text(rows, encoding="utf-8")
        elif kind == "csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        elif kind == "parquet":
            pd.DataFrame(rows).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def load(folder: Path, **options: object) -> TextTask:
    return text.load(folder, TextOptions(**options))  # type: ignore[arg-type]


def labelled(*labels: object) -> list[dict[str, object]]:
    return [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]


def rows_of(split: TextSplit) -> list[tuple[object, ...]]:
    return list(zip(*split.texts, split.labels.tolist(), strict=True))


def refused(folder: Path, message: str, **options: object) -> DataError:
    with pytest.raises(DataError, match=message) as caught:
        load(folder, **options)
    return caught.value


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_is_read_alike(tmp_path, kind):
    rows = [*ROWS[:-2], {"text": 'a "quoted", café\nin two lines', "label": 0}, {"text": "12", "label": 1}]
    task = load(write(tmp_path / "data", kind, train=rows, validation=TEST, test=TEST))
    assert rows_of(task.train) == [(row["text"], row["label"]) for row in rows]
    assert rows_of(task.test) == rows_of(task.validation) == [("seen never", 1), ("nor this", 0)]
    assert task.objective == Classification(2, ("LABEL_0", "LABEL_1"))


def test_several_files_of_a_part_are_read_in_order(tmp_path):
    folder = write(tmp_path / "data", "parquet", test=TEST)
    for number in (1, 0):
        pd.DataFrame(ROWS[5 * number : 5 * number + 5]).to_parquet(folder / f"train-0000{number}-of-00002.parquet")
    pd.DataFrame(TEST).to_parquet(folder / "validation-00000-of-00001.parquet")
    assert rows_of(load(folder).train) == [(row["text"], row["label"]) for row in ROWS]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_pairs_and_other_column_names(tmp_path, kind):
    rows = [{"q": f"question {n}", "a": f"answer {n}", "same": n % 2, "note": "x"} for n in range(4)]
    task = load(write(tmp_path / "data", kind, train=rows, test=rows), text=("q", "a"), label="same")
    assert task.test.texts == ([row["q"] for row in rows], [row["a"] for row in rows])
    assert task.test.labels.tolist() == [0, 1, 0, 1] and len(task.train) == 3


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_names_of_classes_are_sorted_and_the_same_for_every_part(tmp_path, kind):
    train, rest = labelled("dull", "bright", "odd", "dull"), labelled("odd", "bright")
    task = load(write(tmp_path / "data", kind, train=train, validation=rest, test=rest))
    assert task.objective == Classification(3, ("bright", "dull", "odd"))
    assert task.train.labels.tolist() == [1, 0, 2, 1] and task.test.labels.tolist() == [2, 0]
    assert task.train.labels.dtype == torch.int64


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_with_a_fraction_are_regression(tmp_path, kind):
    task = load(write(tmp_path / "data", kind, train=labelled(0.5, 1.0, 4.25), validation=labelled(2.0), test=labelled(3.0)))
    assert task.objective == Regression()
    assert task.train.labels.dtype == torch.float32 and task.train.labels.tolist() == [0.5, 1.0, 4.25]


def test_whole_numbers_are_regression_where_that_is_said(tmp_path):
    folder = write(tmp_path / "data", train=labelled(0, 5, 3), test=labelled(7, -2.5))
    task = load(folder, objective="regression")
    assert task.objective == Regression() and task.test.labels.tolist() == [7.0, -2.5]
    refused(folder, r"text test: label: wanted labels '0', '3', '5', got 7 and 1 more, first in row 0")


NUMBERED = {
    "from zero": ((0, 2, 1, 0), (1, 2), ("LABEL_0", "LABEL_1", "LABEL_2"), [1, 2]),
    "from one": ((1, 5, 2, 3, 4), (5, 1), ("1", "2", "3", "4", "5"), [4, 0]),
    "with a gap": ((0, 3, 0, 10), (10, 3), ("0", "3", "10"), [2, 1]),
    "whole floats": ((0.0, 1.0, 1.0), (1.0, 0.0), ("LABEL_0", "LABEL_1"), [1, 0]),
    "truths": ((True, False, False), (True, False), ("False", "True"), [1, 0]),
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", NUMBERED)
def test_classes_are_the_numbers_that_occur(tmp_path, kind, name):
    train, test, names, expected = NUMBERED[name]
    task = load(write(tmp_path / "data", kind, train=labelled(*train), validation=labelled(*test), test=labelled(*test)))
    assert task.objective == Classification(len(names), names) and task.test.labels.tolist() == expected
    assert task.options.classes == names and task.options.objective == "classification"
    again = load(tmp_path / "data", classes=names, objective="classification")
    assert again.train.labels.tolist() == task.train.labels.tolist()


def test_classes_that_are_given_hold_for_files_in_which_some_are_missing(tmp_path):
    folder = write(tmp_path / "data", train=labelled(2, 2, 1), test=labelled(2))
    assert load(folder, classes=("LABEL_0", "LABEL_1", "LABEL_2")).test.labels.tolist() == [2]
    assert load(folder, classes=("1", "2", "3")).test.labels.tolist() == [1]
    assert load(folder, classes=("low", "middle", "high")).test.labels.tolist() == [2]
    refused(folder, "wanted labels '2', '3', got 1 in row 2", classes=("2", "3"))
    negative = labelled(-1, 1, 0)
    folder = write(tmp_path / "negative", train=negative, validation=negative, test=negative)
    assert load(folder, classes=("-1", "0", "1")).train.labels.tolist() == [0, 2, 1]


LISTS = (["dull", "odd"], [], ["bright"], ["odd", "dull"])


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_lists_of_labels_are_multi_label(tmp_path, kind):
    cells, rest = ([";".join(row) or None for row in rows] if kind == "csv" else rows for rows in (LISTS, LISTS[:2]))
    folder = write(tmp_path / "data", kind, train=labelled(*cells), validation=labelled(*rest), test=labelled(*rest))
    task = load(folder, objective="multi-label" if kind == "csv" else None)
    assert task.objective == MultiLabel(("bright", "dull", "odd")) and task.options.classes == ("bright", "dull", "odd")
    assert task.train.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert task.test.labels.tolist() == [[0, 1, 1], [0, 0, 0]] and task.test.labels.dtype == torch.float32


def test_labels_of_a_list_may_be_numbers(tmp_path):
    task = load(write(tmp_path / "data", train=labelled([0, 2], [1], []), test=labelled([1])))
    assert task.objective == MultiLabel(("LABEL_0", "LABEL_1", "LABEL_2"))
    assert task.train.labels.shape[1] == 3 and task.test.labels.tolist() == [[0, 1, 0]]


def test_another_separator_and_spaces_around_it(tmp_path):
    folder = write(tmp_path / "data", "csv", train=labelled("a | b", "b"), test=labelled("a"))
    task = load(folder, objective="multi-label", separator="|")
    assert task.objective.label_names == ("a", "b") and task.test.labels.tolist() == [[1, 0]]


BAD_LISTS = {
    "unknown in test": ([["a"], ["b"]], [["a", "c"], ["d"]], "text test: label: wanted labels 'a', 'b', got 'c' and 1 more"),
    "number out of range": ([[0], [1]], [[2]], "text test: label: wanted labels 0 to 1, got 2"),
    "missing": ([["a"], None], [["a"]], "text train: label: wanted lists of labels, got None"),
    "none at all": ([[], []], [[]], "text train: label: wanted at least one label, got empty lists only"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_lists_that_are_refused(tmp_path, name):
    train, test, message = BAD_LISTS[name]
    folder = write(tmp_path / "data", train=labelled(*train, *train), test=labelled(*test))
    refused(folder, message, objective="multi-label")


LABELS = {
    "hidden": ((0, 1), (-1, -1), r"text test: label: wanted labels 0 to 1, got -1 and 1 more.*-1 marks the hidden labels"),
    "hidden in train": ((0, 1, -1), (0,), r"text train: label: wanted labels from 0 on, got -1 in row 2\..*-1 marks"),
    "too large": ((0, 1), (2,), "text test: label: wanted labels 0 to 1, got 2"),
    "unknown name": (("n", "p"), ("p", "q"), "text test: label: wanted labels 'n', 'p', got 'q'"),
    "other case": (("n", "p"), ("P",), "got 'P'"),
    "missing": ((0, 1, None), (1,), "text train: label: wanted .*, got None"),
    "missing name": (("n", "p", None), ("n",), "text train: label: wanted .*, got None"),
    "a number for a truth": ((True, False), (1,), "text test: label: wanted labels 'False', 'True', got 1 in row 0"),
    "a truth for a number": ((0, 1, 2), (True,), "text test: label: wanted labels 0 to 2, got True in row 0"),
    "two types": ((0, "a", 1), (0,), "text train: label: wanted labels of one type, int as in the first row, got 'a' in row 1"),
    "other capitals": (("Pos", "neg", "pos"), ("neg",), "wanted different classes, got 'Pos' and 'pos'. Spell them alike"),
    "ids": ((0, 20_000_000), (0,), "wanted labels 0 to 1,000 where numbers have gaps, got 20000000 in row 1"),
    "numbers of rows": (tuple(range(20)), (0,), "classes that occur more than once, got 20 different ones for 20 labels"),
    "an object": ((0, {"a": 1}), (0,), "wanted labels that are names, whole numbers, or true and false, got {'a': 1} in row 1"),
    "all one": ((1, 1), (1,), "wanted at least two classes, got only 1"),
    "not finite": ((0.5, float("inf")), (1.0,), "text train: label: wanted numbers as labels, got inf"),
    "a name for a number": ((0.5, 1.5), ("x",), "text test: label: wanted numbers as labels, got 'x'"),
    "a fraction for a class": ((0, 1), (0.5,), "text test: label: wanted labels 0 to 1, got 0.5"),
}


@pytest.mark.parametrize("name", LABELS)
def test_odd_labels_are_refused(tmp_path, name):
    train, test, message = LABELS[name]
    kind = "csv" if name == "not finite" else "jsonl"
    refused(write(tmp_path / "data", kind, train=labelled(*train), test=labelled(*test)), message)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_numbers_are_never_taken_for_the_place_of_a_name(tmp_path, kind):
    """The names are '1', '2' and 'x'; a file with only numbers is read as numbers, and 1 does not mean the class after '1'."""
    train = labelled("1", "2", "x", "1")
    test = labelled(1, 2)
    try:
        task = load(write(tmp_path / "data", kind, train=train, validation=train, test=test))
    except DataError:
        return
    assert task.objective.label_names == ("1", "2", "x") and task.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("label", ["same", 0])
def test_a_single_class_cannot_be_learned(tmp_path, label):
    same = labelled(label, label, label)
    refused(write(tmp_path / "data", train=same, test=same), "two classes|two labels")


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan"])
def test_words_that_tables_use_for_nothing_are_still_words(tmp_path, word):
    text_file = f"text,label\n{word},None\nb,Some\nc,Some\n"
    task = load(write(tmp_path / "data", "csv", train=text_file, validation=text_file, test=text_file))
    assert task.test.texts[0][0] == word and task.objective.label_names == ("None", "Some")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("missing", ["", None])
def test_a_row_without_text_is_refused_by_its_number(tmp_path, kind, missing):
    rows = [*ROWS[:4], {"text": missing, "label": 0}]
    folder = write(tmp_path / "data", kind, train=rows, validation=TEST, test=TEST)
    refused(folder, "text train: text: wanted a text in every row, got .*row 4")


def test_a_blank_text_is_refused_by_its_row_in_the_file(tmp_path):
    folder = write(tmp_path / "data", "csv", train=[*ROWS, {"text": "  ", "label": 0}], test=TEST)
    refused(folder, r"text train: text: wanted a text in every row, got .*row 10\b")


def test_a_number_is_no_text(tmp_path):
    refused(
        write(tmp_path / "data", "csv", train=[{"text": 5, "label": 0}], test=TEST),
        "text train: text: wanted texts, got numbers alone, 5 in row 0.*--text-column",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ("txt",)}, r"text train: wanted a column 'txt', got \['text', 'label'\]. Did you mean 'text'.*--text-column"),
        ({"text": ("text", "other")}, "wanted a column 'other'"),
        ({"label": "lable"}, "wanted a column 'lable'.*Did you mean 'label'.*--label-column"),
    ],
)
def test_columns_that_are_not_there_are_named_with_the_nearest(tmp_path, options, message):
    refused(write(tmp_path / "data", train=ROWS, test=TEST), message, **options)


def test_folders_that_are_not_complete(tmp_path):
    refused(tmp_path / "nowhere", r"nowhere: wanted train.parquet, .csv, .json or .jsonl, got no such file.*--data")
    refused(write(tmp_path / "a", train=ROWS), "wanted test.parquet, .csv, .json or .jsonl, got no such file")
    refused(write(tmp_path / "b", test=TEST), "wanted train.parquet")
    folder = write(write(tmp_path / "c", "csv", train=ROWS, test=TEST), "jsonl", train=ROWS)
    refused(folder, r"wanted train.*got several kinds: train.csv, train.jsonl")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "wanted train.parquet")


READABLE = "wanted a readable file"
DAMAGED = {
    ("csv", "open quote"): ('text,label\n"a,1\nb,0\n', rf"{READABLE}, got csv.Error in line 3: unexpected end of data"),
    ("csv", "more cells"): ("text,label\na,1\nb,0,3,4\n", "wanted 2 cells a row, as in the header, got 4 in line 3"),
    ("csv", "an index without a name"): (
        "text,label\n0,a,1\n1,b,0\n",
        "wanted 2 cells a row, as in the header, got 3 in line 2",
    ),
    ("csv", "nothing"): ("", f"{READABLE} with a header, got an empty line"),
    ("csv", "semicolons"): ("text;label\na, b;1\n", "wanted a header with commas, got 'text;label', with semicolons"),
    ("csv", "tabs"): ("text\tlabel\na\t1\n", "wanted a header with commas, got .*with tabs"),
    ("csv", "a column twice"): ("text,label,label\na,1,0\n", "wanted columns of different names, got 'label' twice"),
    ("csv", "other encoding"): (
        "text,label\ncafé,0\n".encode("latin-1"),
        "a readable file in utf-8, got Unicode.* in line 2. Conv",
    ),
    ("csv", "UTF-16"): ("text,label\na,0\n".encode("utf-16-le"), "a readable file in utf-8, got one with zero bytes"),
    ("json", "half"): ('{"text": "a", "label": 1}\n{"text": ', f"{READABLE}, got JSONDecodeError.*in line 2"),
    ("json", "text"): ("hello", f"{READABLE}, got JSONDecodeError"),
    ("json", "lists"): ("[1]\n", "data/train.json, object 0: wanted a JSON object, got 1"),
    ("json", "a number a line"): ("1\n2\n", "line 1: wanted a JSON object, got 1"),
    ("json", "a key twice"): (
        '{"text": "a", "text": "b", "label": 1}\n',
        "wanted columns of different names, got 'text' twice",
    ),
    ("json", "deep"): ('{"text": "a", "label": ' + "[" * 100_000 + "]" * 100_000 + "}\n", f"{READABLE}, got RecursionError"),
    ("json", "other encoding"): ('{"text": "café"}'.encode("latin-1"), "a readable file in utf-8, got Unicode.* in line 1"),
    ("parquet", "half"): ("PAR1xxxx", rf"{READABLE}, got \w+Invalid"),
    ("parquet", "nothing"): ("", rf"{READABLE}, got \w+Invalid"),
}


@pytest.mark.parametrize("case", DAMAGED, ids=" ".join)
def test_damaged_files_are_one_clear_error(tmp_path, case, capfd):
    kind, (content, message) = case[0], DAMAGED[case]
    folder = write(tmp_path / "data", kind, test=TEST)
    (folder / f"train.{kind}").write_bytes(content if isinstance(content, bytes) else content.encode())
    error = refused(folder, message)
    assert "\n" not in str(error) and len(str(error)) < 500 and f"train.{kind}" in str(error)
    assert capfd.readouterr().err.strip() == ""


def test_files_from_other_systems_are_read_as_they_are_meant(tmp_path):
    """A byte order mark, CRLF, an unnamed index, blank lines, and quoted text with a comma or a line break."""
    rows = ',label,text\r\n0,1,"a, b"\r\n\r\n1,0,"two\r\nlines"\r\n2,1,café\r\n'
    folder = tmp_path / "data"
    folder.mkdir()
    for part in ("train", "validation", "test"):
        (folder / f"{part}.csv").write_bytes(rows.encode("utf-8-sig"))
    assert rows_of(load(folder).test) == [("a, b", 1), ("two\r\nlines", 0), ("café", 1)]
    lines = "".join(json.dumps({"text": text, "label": n % 2}) + "\r\n" for n, text in enumerate(("a", "b", "c")))
    for part in ("train", "validation", "test"):
        (folder / f"{part}.csv").unlink()
        (folder / f"{part}.jsonl").write_bytes(lines.encode("utf-8-sig"))
    assert rows_of(load(folder).test) == [("a", 0), ("b", 1), ("c", 0)]


def test_a_long_text_is_one_cell(tmp_path):
    rows = [{"text": "word " * 100_000, "label": 0}, *ROWS]
    assert len(load(write(tmp_path / "data", "csv", train=rows, validation=rows, test=rows)).test.texts[0][0]) == 500_000


def test_a_json_file_may_be_one_list(tmp_path):
    folder = write(
        tmp_path / "data", "json", train=json.dumps(ROWS), validation=json.dumps(TEST), test=json.dumps(TEST, indent=1)
    )
    assert rows_of(load(folder).test) == [("seen never", 1), ("nor this", 0)] and len(load(folder).train) == 10


def test_rows_without_text_or_label_are_dropped_where_that_is_said_and_counted(tmp_path):
    rows = [*ROWS[:3], {"text": " ", "label": 1}, {"text": "x", "label": None}, {"text": None, "label": 0}, *ROWS[3:]]
    folder = write(tmp_path / "data", "jsonl", train=rows, validation=TEST, test=TEST)
    refused(folder, "text train: text: wanted a text in every row, got 2 empty, first in row 3. .*--drop-empty")
    task = load(folder, drop_empty=True)
    assert rows_of(task.train) == [(row["text"], row["label"]) for row in ROWS]
    assert task.train.rows is not None and task.train.rows.tolist() == [0, 1, 2, *range(6, 13)]
    assert task.origin["train"] == {"files": ["train.jsonl"], "rows": 10, "dropped": 3}
    assert task.origin["test"] == {"files": ["test.jsonl"], "rows": 2, "dropped": 0}
    write(folder, "jsonl", test=[{"text": "", "label": 0}])
    refused(folder, "text test: wanted at least one row that is not empty, got none", drop_empty=True)


def test_only_the_files_of_a_part_are_read(tmp_path):
    folder = write(
        tmp_path / "data", "csv", train=ROWS, train_old=TEST, training=TEST, validation=TEST, test=TEST, test_5k=TEST
    )
    (folder / "train-old.csv").write_text("text,label\n")
    (folder / "train.csv.bak").write_text("text,label\n")
    task = load(folder)
    assert len(task.train) == 10 and task.origin["train"]["files"] == ["train.csv"]


AMBIGUOUS = {
    "a whole file beside a piece": (
        {"train": ROWS, "train-1": ROWS},
        "one train file, or the pieces of one, got train.csv, train-1",
    ),
    "a missing piece": ({"train-00000-of-00003": ROWS, "train-00002-of-00003": ROWS}, "all 3 pieces of train, got 2 of them"),
    "one piece twice": ({"train-1": ROWS, "train-01": ROWS}, "one train file, or the pieces of one"),
    "two sets of pieces": ({"train-0-of-2": ROWS, "train-1-of-3": ROWS}, "one train file, or the pieces of one"),
    "other columns": (
        {"train-0": ROWS, "train-1": [{"text": "a", "class": 1}]},
        "train-1.csv: wanted columns text, label, got text, class",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_files_that_may_be_meant_are_refused(tmp_path, name):
    parts, message = AMBIGUOUS[name]
    refused(write(tmp_path / "data", "csv", test=TEST, **parts), message)


def test_pieces_are_read_by_number(tmp_path):
    parts = {f"train-{number}": [{"text": f"text {number}", "label": number % 2}] for number in range(12)}
    task = load(write(tmp_path / "data", "csv", validation=TEST, test=TEST, **parts))
    assert task.train.texts[0] == [f"text {number}" for number in range(12)]


def test_a_header_without_rows_is_refused(tmp_path):
    refused(write(tmp_path / "data", "csv", train="text,label\n", test=TEST), "train")


def test_no_folder_at_all():
    with pytest.raises(SpecError, match=r"task text: wanted a folder with your files, got none. Add --data FOLDER"):
        load_task("text")


@pytest.mark.parametrize("texts", [(), ("a", "b", "c")])
def test_one_text_or_a_pair(texts):
    with pytest.raises(SpecError, match="one or two text columns"):
        TextOptions(text=texts)


def test_text_options_are_for_the_task_text():
    with pytest.raises(SpecError, match="the task 'text' with text options, got 'digits'"):
        load_task("digits", None, TextOptions())


def test_unknown_tasks_are_met_with_the_nearest():
    with pytest.raises(SpecError, match=r"got 'sst3'. Did you mean 'sst2'"):
        load_task("sst3")
    with pytest.raises(SpecError, match=r"Did you mean 'text'"):
        load_task("txet")


def numbered(count: int) -> TextSplit:
    return TextSplit(([str(n) for n in range(count)], [f"b{n}" for n in range(count)]), torch.arange(count))


@pytest.mark.parametrize("count", [2, 3, 10, 11, 99, 25_000])
def test_what_is_held_out_is_a_tenth_and_covers_everything_once(count):
    left, kept = held_out(numbered(count), "name")
    assert len(kept) == min(2_000, -(-count // 10)) and len(left) + len(kept) == count
    assert sorted([*left.labels.tolist(), *kept.labels.tolist()]) == list(range(count))
    for part in (left, kept):
        assert part.texts == ([str(n) for n in part.labels.tolist()], [f"b{n}" for n in part.labels.tolist()])


def test_what_is_held_out_is_always_the_same_and_another_for_another_task():
    one, again, other = (held_out(numbered(50), name)[1].labels.tolist() for name in ("a", "a", "b"))
    assert one == again != other
    torch.manual_seed(123)
    assert held_out(numbered(50), "a")[1].labels.tolist() == one


def test_one_row_cannot_be_shared(tmp_path):
    with pytest.raises(DataError, match=r"text train: wanted at least two training rows, got 1"):
        held_out(numbered(1), "text")


def test_a_validation_file_is_used_whole(tmp_path):
    task = load(write(tmp_path / "data", train=ROWS, validation=TEST, test=TEST))
    assert len(task.train) == len(ROWS) and len(task.validation) == 2


def test_without_one_it_comes_from_train_and_never_from_test(tmp_path):
    task = load(write(tmp_path / "data", "parquet", train=ROWS, test=TEST))
    parts = {*task.train.texts[0]}, {*task.validation.texts[0]}
    assert parts[0] | parts[1] == {row["text"] for row in ROWS} and not parts[0] & parts[1]
    assert rows_of(task.test) == [("seen never", 1), ("nor this", 0)]


def test_changed_files_are_read_anew(tmp_path):
    folder = write(tmp_path / "data", train=ROWS, test=TEST)
    load(folder)
    write(folder, test=[{"text": "changed", "label": 1}])
    assert load(folder).test.texts == (["changed"],)


def test_parquet_files_without_pyarrow_say_how_to_install_it(tmp_path, monkeypatch):
    real = importlib.import_module

    def fake(name, *args):
        if name == "pyarrow.parquet":
            raise ImportError("No module named 'pyarrow'")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", fake)
    with pytest.raises(MissingPackageError, match=r"pip install 'bitstill\[all\]'"):
        load(write(tmp_path / "data", "parquet", train=ROWS, test=TEST))
