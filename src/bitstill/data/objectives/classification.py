"""Classification: one class per sample, the one with the largest logit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitstill.constraints import Count, FractionBelowOne, NonNegative, check_fields
from bitstill.data.metrics import (
    accuracy,
    accuracy_and_f1,
    class_counts,
    confusion,
    f1,
    macro_f1,
    matthews,
    precision_recall_f1,
)
from bitstill.data.objective import DetailTable, HeadKind, Imitation
from bitstill.errors import DataError, SpecError, suggest
from bitstill.losses.logits import KL, CrossEntropy, Reduction, SoftCrossEntropy
from bitstill.losses.loss import Loss
from bitstill.losses.taps import as_logits
from bitstill.schedules import Scheduled

Metric = Callable[[Tensor, Tensor], float]
CONFUSION = 200
"""Classes up to which a report holds the confusion table, which grows with their square."""


@dataclass(frozen=True)
class Classification:
    """One of several classes per sample.

    Args:
        classes: how many.
        label_names: in order; empty where they have none.
        decides: "accuracy", "macro F1"; of two classes also "F1" (of class 1), "Matthews correlation" and "mean of accuracy and
            F1"; or one of `extra_metrics`.
        class_weights: of the cross-entropy on labels, one per class; None weighs all alike.
        label_smoothing: of that cross-entropy.
        extra_metrics: by name, (logits (samples, classes), labels (samples,)) -> a number, larger is better.
    """

    classes: Count
    label_names: tuple[str, ...] = ()
    decides: str = "accuracy"
    class_weights: tuple[NonNegative, ...] | None = None
    label_smoothing: FractionBelowOne = 0.0
    extra_metrics: Mapping[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.classes < 2:
            fix = "For values use the objective Regression; for labels that hold or not, MultiLabel."
            raise SpecError("at least two classes", given=str(self.classes), where="Classification", fix=fix)
        if self.label_names and len(self.label_names) != self.classes:
            given = f"{len(self.label_names)} names"
            raise SpecError(f"{self.classes} names of classes", given=given, where="Classification", fix="Name each class.")
        if self.decides not in self._metrics():
            fix = suggest(self.decides, self._metrics())
            raise SpecError("a known metric", given=repr(self.decides), where="Classification", fix=fix)
        check_distinct(self.label_names, "Classification")
        check_class_weights(self.class_weights, self.classes)

    @property
    def width(self) -> int:
        """One logit per class."""
        return self.classes

    @property
    def head_kind(self) -> HeadKind:
        """One row of outputs per sample."""
        return "sample"

    @property
    def summary(self) -> str:
        """The number of classes."""
        return f"{self.classes} classes"

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Labels are int64 (samples,), from 0.

        Raises:
            DataError: they are not.
        """
        if labels.ndim != 1:
            fix = "Give one class per sample: labels.flatten() if they have one column, labels.argmax(1) if they are one-hot."
            raise DataError("labels (samples,)", given=f"shape {tuple(labels.shape)}", where=where, fix=fix)
        if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            dtype = str(labels.dtype).removeprefix("torch.")
            raise DataError(
                f"int64 labels from 0 to {self.classes - 1}",
                given=f"{dtype} from {labels.min().item()} to {labels.max().item()}",
                where=where,
                fix="Correct the labels or the number of classes; for values use the objective Regression.",
            )

    def read(self, output: object, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (samples, classes)."""
        return as_logits(output)

    def label_loss(self) -> Loss:
        """Cross-entropy."""
        return CrossEntropy(self.label_smoothing, self.class_weights)

    def imitation_loss(self, kind: Imitation, temperature: Scheduled = 1.0, reduction: Reduction = "batchmean") -> Loss:
        """KL divergence at a temperature, or soft cross-entropy."""
        return KL(temperature, reduction) if kind == "kl" else SoftCrossEntropy(reduction)

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """In percent, but for `extra_metrics`."""
        return {name: metric(outputs, labels) for name, metric in self._metrics().items()}

    def report(self, outputs: Tensor, labels: Tensor) -> dict[str, DetailTable]:
        """Precision, recall and F1 of each class; of at most `CONFUSION` classes also how often which was taken for which."""
        names = self.label_names or tuple(map(str, range(self.classes)))
        predicted = outputs.argmax(-1)
        counts = class_counts(predicted, labels, self.classes)
        figures, samples = precision_recall_f1(*counts), counts[2].tolist()
        per_class = {name: (*row, count) for name, row, count in zip(names, figures, samples, strict=True)}
        details = {"per class": DetailTable(("precision", "recall", "F1", "samples"), per_class)}
        if self.classes <= CONFUSION:
            table = confusion(predicted, labels, self.classes).tolist()
            details["confusion"] = DetailTable(names, {name: tuple(row) for name, row in zip(names, table, strict=True)})
        return details

    def constant_output(self, labels: Tensor) -> Tensor:
        """The most frequent class."""
        return F.one_hot(labels.bincount(minlength=self.classes).argmax(), self.classes).float()

    def head(self) -> dict[str, Any]:
        """Names of the classes by number, and the reverse."""
        return named_outputs(self.label_names or tuple(f"LABEL_{index}" for index in range(self.classes)))

    def balanced_weights(self, labels: Tensor) -> tuple[float, ...]:
        """Weights inversely proportional to the frequency of the classes, 1 on average over the samples.

        A class that never occurs gets the weight 0.
        """
        counts = labels.bincount(minlength=self.classes).tolist()
        occurring = sum(count > 0 for count in counts)
        return tuple(len(labels) / (occurring * count) if count else 0.0 for count in counts)

    def with_class_weights(self, weights: tuple[float, ...]) -> Classification:
        """The same objective with these weights."""
        return replace(self, class_weights=weights)

    def _metrics(self) -> dict[str, Metric]:
        of_two: dict[str, Metric] = {"F1": f1, "Matthews correlation": matthews, "mean of accuracy and F1": accuracy_and_f1}
        every: dict[str, Metric] = {"accuracy": accuracy, "macro F1": partial(macro_f1, classes=self.classes)}
        return {**every, **(of_two if self.classes == 2 else {}), **self.extra_metrics}


def check_class_weights(weights: tuple[float, ...] | None, count: int) -> None:
    """Refuse class weights of another number, and none but zeros.

    Raises:
        SpecError: with how many there should be.
    """
    if weights is not None and (len(weights) != count or not 0 < sum(weights) < math.inf):
        fix = "Give one number per class, in the order of the classes, or 'balanced'."
        wanted = f"{count} class weights, some above 0"
        raise SpecError(wanted, given=f"{len(weights)}: {', '.join(map(str, weights))}", where="class_weights", fix=fix)


def check_distinct(names: tuple[str, ...], where: str) -> None:
    """Refuse outputs of one name.

    Raises:
        SpecError: naming it.
    """
    twice = (
        next((name for index, name in enumerate(names) if name in names[:index]), None) if len({*names}) < len(names) else None
    )
    if twice is not None:
        raise SpecError("different names", given=f"{twice!r} twice", where=where, fix="Name each output once.")


def named_outputs(names: tuple[str, ...]) -> dict[str, Any]:
    """`id2label` and `label2id` of a config of transformers."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
