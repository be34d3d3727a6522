"""GLUE (Wang et al. 2018), each task with its official metric.

Results are reported on the published validation split; weights are selected on a part held out of train.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bitstill.data.objectives import Classification, Regression
from bitstill.data.sources import from_hub
from bitstill.data.text import PartTable, TextOptions, TextTask, held_out, read_part, split_of
from bitstill.data.text_labels import Kind

HUB_NAME = "nyu-mll/glue"
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_BOTH = "mean of accuracy and F1"


@dataclass(frozen=True)
class Glue:
    """A GLUE task.

    Args:
        folder: its name on the hub, and its folder in `$BITSTILL_DATA/glue`.
        text: its text columns.
        labels: names of its classes; None for regression.
        decides: its official metric.
        test: the reported split.
        max_length: maximal length in tokens; longer texts are truncated, as in all published results.
    """

    folder: str
    text: tuple[str, ...]
    labels: tuple[str, ...] | None
    decides: str = "accuracy"
    test: str = "validation"
    max_length: int = 128


GLUE: dict[str, Glue] = {
    "cola": Glue("cola", ("sentence",), ("unacceptable", "acceptable"), "Matthews correlation", max_length=64),
    "mnli": Glue("mnli", ("premise", "hypothesis"), _NLI, test="validation_matched"),
    "mnli-mm": Glue("mnli", ("premise", "hypothesis"), _NLI, test="validation_mismatched"),
    "mrpc": Glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), _BOTH),
    "qnli": Glue("qnli", ("question", "sentence"), _ENTAILMENT),
    "qqp": Glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), _BOTH),
    "rte": Glue("rte", ("sentence1", "sentence2"), _ENTAILMENT),
    "sst2": Glue("sst2", ("sentence",), ("negative", "positive"), max_length=64),
    "stsb": Glue("stsb", ("sentence1", "sentence2"), None, "mean of Pearson and Spearman"),
}


def load(name: str, data: Path | None = None) -> TextTask:
    """Load a GLUE task.

    Args:
        name: a key of `GLUE`.
        data: folder with train.parquet and validation.parquet or pieces; None looks in `$BITSTILL_DATA/glue/<task>`, then on
            the hub under `HUB_NAME`.

    Raises:
        DataError: files are missing, or columns or labels are invalid.
        MissingPackageError: without `datasets`.
    """
    glue = GLUE[name]
    home = os.environ.get("BITSTILL_DATA")
    folder = data or (Path(home) / "glue" / glue.folder if home else None)
    kind: Kind = "classification" if glue.labels else "regression"
    options = TextOptions(glue.text, "label", kind, glue.max_length, truncate=True)
    parts = {part: _rows(glue, folder, part) for part in ("train", glue.test)}
    origin = {part: {"files": list(rows.files), "rows": len(rows.table.get("label", ()))} for part, rows in parts.items()}
    whole, test = (split_of(rows.table, options, glue.labels, f"{name} {part}") for part, rows in parts.items())
    train, validation = held_out(whole, name)
    objective = Classification(len(glue.labels), glue.labels, glue.decides) if glue.labels else Regression(glue.decides)
    return TextTask(name, train, validation, test, objective, options, origin)


def _rows(glue: Glue, folder: Path | None, part: str) -> PartTable:
    if folder is not None:
        rows = read_part(folder, part)
        assert rows is not None
        return rows
    rows = from_hub(HUB_NAME, glue.folder, part, where=f"{glue.folder} {part}", purpose="text tasks")
    table = {column: list(rows[column]) for column in rows.column_names}
    return PartTable(table, (f"{HUB_NAME} ({glue.folder}) {part}",))
