"""Auto classes of transformers by kind of head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from bitstill.data.objective import HeadKind
from bitstill.data.task import Task
from bitstill.errors import DataError


class AutoClass(NamedTuple):
    """An Auto class, its class names by `model_type` (one or several), and its purpose."""

    auto: Any
    classes: Mapping[str, str | Sequence[str]]
    purpose: str


_TEXT: dict[HeadKind, AutoClass] = {
    "sample": AutoClass(
        AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "text classification"
    ),
}
_IMAGE: dict[HeadKind, AutoClass] = {
    "sample": AutoClass(AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "image classification"),
}


def auto_class_for(task: Task) -> AutoClass:
    """Auto class of models for `task`.

    Raises:
        DataError: no class of transformers has the head of the task's objective.
    """
    modality, table = ("text", _TEXT) if "input_ids" in task.train.inputs else ("image", _IMAGE)
    kind = task.objective.head_kind
    if kind not in table:
        fix = f"Pass your own network; pretrained models have heads for: {', '.join(table)}."
        raise DataError(f"a head of transformers for {modality}", given=f"head_kind {kind!r}", where=task.name, fix=fix)
    return table[kind]


def is_known(architecture: str) -> bool:
    """Whether artifacts may name this class: a model with one of these heads, or without a head."""
    tables = [entry.classes for table in (_TEXT, _IMAGE) for entry in table.values()]
    names = [name for table in (*tables, MODEL_MAPPING_NAMES) for name in table.values()]
    return any(architecture == name or (not isinstance(name, str) and architecture in name) for name in names)
