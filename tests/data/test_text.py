"""A user's own text files: what is read, how labels are understood, and what is refused."""

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
    """One file per part, or a part's very text."""
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
    refused(folder, r"text test: label: wanted labels 0 to 5, got 7.0 and 1 more")


def test_classes_between_the_numbers_count(tmp_path):
    task = load(write(tmp_path / "data", train=labelled(0, 3, 0), test=labelled(2)))
    assert task.objective.label_names == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")


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
    task = load(write(tmp_path / "data", train=labelled([0, 2], []), test=labelled([1])))
    assert task.objective == MultiLabel(("LABEL_0", "LABEL_1", "LABEL_2")) and task.options.classes is None
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
    "hidden in train": ((0, 1, -1), (0,), "text train: label: wanted labels 0 to 1, got -1"),
    "too large": ((0, 1), (2,), "text test: label: wanted labels 0 to 1, got 2"),
    "unknown name": (("n", "p"), ("p", "q"), "text test: label: wanted labels 'n', 'p', got 'q'"),
    "other case": (("n", "p"), ("P",), "got 'P'"),
    "missing": ((0, 1, None), (1,), "text train: label: wanted .*, got None"),
    "missing name": (("n", "p", None), ("n",), "text train: label: wanted .*, got None"),
    "truth": ((True, False), (True,), "got True"),
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
    """The names are '1', '2' and 'x'; a file that has only numbers is read as numbers, and 1 is not the class after '1'."""
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
    refused(write(tmp_path / "data", "csv", train=[{"text": 5, "label": 0}], test=TEST), "text train: text: .*got 5 in row 0")


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


DAMAGED = {
    "csv": {"open quote": 'text,label\n"a,1\nb,0\n', "more cells": "text,label\na,1\nb,0,3,4\n", "nothing": ""},
    "json": {"half": '{"text": "a", "label": 1}\n{"text": ', "text": "hello"},
    "parquet": {"half": "PAR1xxxx", "nothing": ""},
}


@pytest.mark.parametrize(("kind", "how"), [(kind, how) for kind, ways in DAMAGED.items() for how in ways])
def test_damaged_files_are_one_clear_error(tmp_path, kind, how, caplog, capfd):
    folder = write(tmp_path / "data", kind, test=TEST, train=DAMAGED[kind][how])
    error = refused(folder, rf"train.{kind}: wanted a readable file, got \w+(Error|Invalid)")
    assert "\n" not in str(error) and len(str(error)) < 500
    assert not [record for record in caplog.records if record.name.startswith("datasets")], "said once, by us"
    assert capfd.readouterr().err.strip() == ""


def test_a_file_in_another_encoding_is_refused(tmp_path):
    folder = write(tmp_path / "data", "csv", test=TEST)
    (folder / "train.csv").write_bytes("text,label\ncafé,0\n".encode("latin-1"))
    refused(folder, r"train.csv: wanted a readable file, got UnicodeDecodeError")


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
    task = load(write(tmp_path / "data", train=ROWS, test=TEST))
    parts = {*task.train.texts[0]}, {*task.validation.texts[0]}
    assert parts[0] | parts[1] == {row["text"] for row in ROWS} and not parts[0] & parts[1]
    assert rows_of(task.test) == [("seen never", 1), ("nor this", 0)]


def test_changed_files_are_read_anew(tmp_path):
    folder = write(tmp_path / "data", train=ROWS, test=TEST)
    load(folder)
    write(folder, test=[{"text": "changed", "label": 1}])
    assert load(folder).test.texts == (["changed"],)


def test_files_without_the_package_datasets_say_how_to_install_it(tmp_path, monkeypatch):
    real = importlib.import_module

    def fake(name, *args):
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", fake)
    with pytest.raises(MissingPackageError, match=r"pip install 'bitstill\[all\]'"):
        load(write(tmp_path / "data", train=ROWS, test=TEST))
