"""GLUE from local files: tiny ones made here, and the real ones if present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bitstill.data import glue, text
from bitstill.data.catalogue import TASKS, load_task
from bitstill.data.metrics import accuracy, accuracy_and_f1, matthews, pearson_and_spearman
from bitstill.data.text import TextOptions
from bitstill.errors import DataError, SpecError

datasets = pytest.importorskip("datasets")
pd = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside datasets and pyarrow

REPOSITORY = Path(__file__).parents[2]
REAL = Path(os.environ.get("BITSTILL_DATA", REPOSITORY.parent / "shared" / "data"))
SIZES = {"sst2": (67_349, 872), "cola": (8_551, 1_043), "rte": (2_490, 277), "stsb": (5_749, 1_500)}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.delenv("BITSTILL_DATA", raising=False)
        yield


def write(folder: Path, name: str, count: int = 12, **parts: list[object]) -> Path:
    """Write Parquet files with a task's columns; each part is given as its labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, labels in (parts or {"train": [n % 2 for n in range(count)], "validation": [0, 1, 1]}).items():
        texts = {column: [f"{part} {column} {n}" for n in range(len(labels))] for column in glue.GLUE[name].text}
        pd.DataFrame({**texts, "label": labels, "idx": range(len(labels))}).to_parquet(
            folder / f"{part}-00000-of-00001.parquet"
        )
    return folder


@pytest.mark.parametrize("name", glue.GLUE)
def test_every_task_reads_its_own_columns_and_is_judged_as_glue_judges_it(tmp_path, name):
    known = glue.GLUE[name]
    values = [0.5, 2.0, 5.0] if known.labels is None else [0, 1, 0]
    task = load_task(name, write(tmp_path, name, train=values * 4, **{known.test: values}))
    assert task.name == name and task.objective.label_names == (known.labels or ()) and task.test.labels.tolist() == values
    assert task.test.texts == tuple([f"{known.test} {column} {n}" for n in range(3)] for column in known.text)
    kind = "regression" if known.labels is None else "classification"
    assert task.options == TextOptions(known.text, "label", kind, known.max_length, truncate=True)
    metrics = {
        "cola": matthews, "mrpc": accuracy_and_f1, "qqp": accuracy_and_f1, "stsb": pearson_and_spearman,
    }  # fmt: skip
    labels = task.train.labels
    outputs = torch.arange(float(len(labels))) if known.labels is None else torch.randn(len(labels), len(known.labels))
    assert task.objective.metrics(outputs, labels)[task.objective.decides] == metrics.get(name, accuracy)(outputs, labels)


def test_both_validation_splits_of_mnli_are_tasks(tmp_path):
    parts = {"train": [0, 1, 2] * 4, "validation_matched": [0, 1], "validation_mismatched": [2, 2, 0]}
    folder = write(tmp_path, "mnli", **parts)
    assert [len(load_task(name, folder).test) for name in ("mnli", "mnli-mm")] == [2, 3]
    assert load_task("mnli", folder).objective.label_names == ("entailment", "neutral", "contradiction")


def test_choices_are_made_on_rows_of_train_never_on_what_is_reported(tmp_path):
    task = load_task("sst2", write(tmp_path, "sst2", 30))
    train, validation, test = (set(split.texts[0]) for split in (task.train, task.validation, task.test))
    assert train | validation == {f"train sentence {n}" for n in range(30)} and not train & validation
    assert len(validation) == 3 and test == {f"validation sentence {n}" for n in range(3)}


def test_data_are_found_in_bitstill_data(tmp_path, monkeypatch):
    write(tmp_path / "glue" / "mnli", "mnli", train=[0, 1, 2, 0], validation_mismatched=[2])
    monkeypatch.setenv("BITSTILL_DATA", str(tmp_path))
    assert len(load_task("mnli-mm").test) == 1
    with pytest.raises(DataError, match=r"glue/sst2: wanted train.parquet"):
        load_task("sst2")


def test_an_empty_text_is_what_was_published(tmp_path):
    folder = write(tmp_path, "qqp")
    rows = pd.read_parquet(folder / "train-00000-of-00001.parquet")
    rows.loc[0, "question2"] = ""
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    assert len(load_task("qqp", folder).train) == 10


def test_the_hidden_labels_of_the_test_set_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"rte validation: label: wanted labels 0 to 1, got -1 and 2 more.*-1 marks"):
        load_task("rte", write(tmp_path, "rte", train=[0, 1, 0, 1], validation=[-1, -1, -1]))


def test_another_tasks_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"wanted a column 'question', got \['sentence', 'label', 'idx'\]"):
        load_task("qnli", write(tmp_path, "sst2"))


def test_without_files_the_hub_is_asked_and_its_absence_explained(monkeypatch):
    asked = []

    def refuse(*arguments, **settings):
        asked.append((arguments, settings))
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"mnli train: wanted the data set nyu-mll/glue \(mnli\).*no route.*BITSTILL_DATA"):
        load_task("mnli-mm")
    assert asked == [(("nyu-mll/glue", "mnli"), {"split": "train"})]


def test_what_the_hub_gives_is_read_like_files(monkeypatch):
    def give(name, configuration, split):
        count = 12 if split == "train" else 3
        labels = datasets.ClassLabel(names=["negative", "positive"])
        rows = {"sentence": [f"{split} {n}" for n in range(count)], "label": [n % 2 for n in range(count)]}
        return datasets.Dataset.from_dict(rows).cast_column("label", labels)

    monkeypatch.setattr(datasets, "load_dataset", give)
    task = load_task("sst2")
    assert len(task.train) == 10 and task.test.texts == (["validation 0", "validation 1", "validation 2"],)


def test_options_are_not_for_published_sets():
    with pytest.raises(SpecError, match="the task 'text' with text options, got 'sst2'"):
        load_task("sst2", None, TextOptions())
    assert set(glue.GLUE) < set(TASKS)


@pytest.fixture
def real():
    def folder(name: str) -> Path:
        path = REAL / "glue" / name
        if not sorted(path.glob("*.parquet")):
            pytest.skip(f"no parquet files in {path}; set BITSTILL_DATA to the folder that holds glue/")
        return path

    return folder


@pytest.mark.parametrize("name", SIZES)
def test_the_real_sets_are_whole_and_their_published_validation_split_is_reported(real, name, monkeypatch):
    folder = real(name)
    monkeypatch.setenv("BITSTILL_DATA", str(REAL))
    task, (whole, reported) = load_task(name), SIZES[name]
    held = min(text.AT_MOST, -(-whole // 10))
    assert (len(task.train), len(task.validation), len(task.test)) == (whole - held, held, reported)
    published = pd.read_parquet(folder / "validation.parquet")
    assert task.test.texts == tuple(published[column].tolist() for column in glue.GLUE[name].text)
    assert task.test.labels.tolist() == published["label"].tolist()
    train = pd.read_parquet(folder / "train.parquet", columns=[*glue.GLUE[name].text, "label"])
    rows = sorted(map(tuple, train.itertuples(index=False, name=None)))
    ours = [*zip(*task.train.texts, task.train.labels.tolist(), strict=True)]
    ours += zip(*task.validation.texts, task.validation.labels.tolist(), strict=True)
    assert sorted(ours) == rows


def test_qnli_without_its_train_split_is_a_clear_error(real, monkeypatch):
    folder = real("qnli")
    if list(folder.glob("train*")):
        pytest.skip("this copy has a train split")
    monkeypatch.setenv("BITSTILL_DATA", str(REAL))
    with pytest.raises(DataError, match=r"glue/qnli: wanted train.parquet, .csv, .json or .jsonl, got no such file"):
        load_task("qnli")
