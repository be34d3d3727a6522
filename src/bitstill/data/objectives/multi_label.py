"""Multi-label classification: any number of labels per sample, each decided by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from bitstill.constraints import NonNegative, Range, check_fields
from bitstill.data.metrics import precision_recall_f1
from bitstill.data.objective import DetailTable, HeadKind, Imitation
from bitstill.data.objectives.classification import check_class_weights, check_distinct, named_outputs
from bitstill.errors import DataError, SpecError, suggest
from bitstill.losses.logits import Reduction
from bitstill.losses.loss import Loss
from bitstill.losses.sigmoid import BinaryCrossEntropy, BinaryKL, SoftBinaryCrossEntropy
from bitstill.losses.taps import as_logits
from bitstill.schedules import Scheduled

METRICS = ("micro F1", "macro F1", "exact match")


@dataclass(frozen=True)
class MultiLabel:
    """Any number of labels per sample.

    Args:
        label_names: in the order of the outputs.
        decides: "micro F1" (over all decisions), "macro F1" (mean over labels, 0 where one is not defined) or "exact match"
            (samples with every label right).
        threshold: probability from which on a label holds.
        class_weights: of each label where it holds, in the cross-entropy on labels; None weighs all by 1.
    """

    label_names: tuple[str, ...]
    decides: str = "micro F1"
    threshold: Annotated[float, Range(above=0, below=1)] = 0.5
    class_weights: tuple[NonNegative, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.label_names:
            raise SpecError("at least one label", given="none", where="MultiLabel", fix="Name the labels in order.")
        check_distinct(self.label_names, "MultiLabel")
        if self.decides not in METRICS:
            fix = suggest(self.decides, METRICS)
            raise SpecError("a known metric", given=repr(self.decides), where="MultiLabel", fix=fix)
        check_class_weights(self.class_weights, self.width)

    @property
    def width(self) -> int:
        """One logit per label."""
        return len(self.label_names)

    @property
    def head_kind(self) -> HeadKind:
        """One row of outputs per sample."""
        return "sample"

    @property
    def summary(self) -> str:
        """The number of labels."""
        return f"{self.width} labels"

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Labels are float (samples, labels), 1 where a label holds and 0 elsewhere.

        Raises:
            DataError: they are not.
        """
        shaped = labels.ndim == 2 and labels.shape[1] == self.width and labels.is_floating_point()
        if not shaped or not bool(((labels == 0) | (labels == 1)).all()):
            dtype = str(labels.dtype).removeprefix("torch.")
            given = f"{dtype} {tuple(labels.shape)}" + (" with other values" if shaped else "")
            fix = "Give one row per sample and one column per label."
            raise DataError(f"float labels 0 or 1 (samples, {self.width})", given=given, where=where, fix=fix)

    def read(self, output: object, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (samples, labels)."""
        return as_logits(output)

    def label_loss(self) -> Loss:
        """Binary cross-entropy."""
        return BinaryCrossEntropy(self.class_weights)

    def imitation_loss(self, kind: Imitation, temperature: Scheduled = 1.0, reduction: Reduction = "batchmean") -> Loss:
        """Binary KL divergence at a temperature, or binary cross-entropy with the teacher's probabilities."""
        return BinaryKL(temperature, reduction) if kind == "kl" else SoftBinaryCrossEntropy(reduction)

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Micro and macro F1 and exact match, in percent."""
        predicted, actual = self.predictions(outputs), labels.bool()
        hits, guesses, truths = _counts(predicted, actual)
        each = precision_recall_f1(hits, guesses, truths)
        ((_, _, micro),) = precision_recall_f1(*(counts.sum(0, keepdim=True) for counts in (hits, guesses, truths)))
        macro = sum(f1 for _, _, f1 in each) / len(each)
        exact = 100.0 * int((predicted == actual).all(1).sum()) / len(labels)
        return dict(zip(METRICS, (micro, macro, exact), strict=True))

    def report(self, outputs: Tensor, labels: Tensor) -> dict[str, DetailTable]:
        """Precision, recall and F1 of each label, and how often it holds."""
        hits, guesses, truths = _counts(self.predictions(outputs), labels.bool())
        figures = precision_recall_f1(hits, guesses, truths)
        counts = truths.tolist()
        rows = {name: (*row, count) for name, row, count in zip(self.label_names, figures, counts, strict=True)}
        return {"per label": DetailTable(("precision", "recall", "F1", "samples"), rows)}

    def predictions(self, outputs: Tensor) -> Tensor:
        """Labels that hold, bool (samples, labels)."""
        return outputs >= math.log(self.threshold / (1 - self.threshold))

    def constant_output(self, labels: Tensor) -> Tensor:
        """The log-odds of each label."""
        return torch.logit(labels.float().mean(0), eps=1e-6)

    def head(self) -> dict[str, Any]:
        """Names of the labels by number, and that each is decided by itself."""
        return {"problem_type": "multi_label_classification", **named_outputs(self.label_names)}

    def balanced_weights(self, labels: Tensor) -> tuple[float, ...]:
        """Samples without a label over those with it; 1 for a label that never holds."""
        return tuple((len(labels) - held) / held if held else 1.0 for held in labels.sum(0).tolist())

    def with_class_weights(self, weights: tuple[float, ...]) -> MultiLabel:
        """The same objective with these weights."""
        return replace(self, class_weights=weights)


def _counts(predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per label: decisions that were right to say yes, all that said yes, and samples where it holds."""
    return (predicted & actual).sum(0), predicted.sum(0), actual.sum(0)
