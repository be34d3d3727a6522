"""Losses on multi-label logits: cross-entropy and divergence of one Bernoulli variable per output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from bitstill.constraints import NonNegative, Range, check_fields
from bitstill.losses.logits import Reduction
from bitstill.losses.taps import Output
from bitstill.schedules import Scheduled, at


def binary_kl_divergence(student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction) -> Tensor:
    """T^2 KL(sigmoid(teacher / T) || sigmoid(student / T)), summed over the outputs of a sample.

    Args:
        student, teacher: logits (batch, labels).
        temperature: T > 0.
        reduction: "batchmean" divides the sum by the batch size, "mean" also by the number of labels.
    """
    student_logits, teacher_logits = student.float() / temperature, teacher.float() / temperature
    positive = F.sigmoid(teacher_logits) * (F.logsigmoid(teacher_logits) - F.logsigmoid(student_logits))
    negative = F.sigmoid(-teacher_logits) * (F.logsigmoid(-teacher_logits) - F.logsigmoid(-student_logits))
    return (positive + negative).sum() * temperature**2 / (student.numel() if reduction == "mean" else student.shape[0])


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Cross-entropy of each output with its label (batch, labels), 0 or 1; mean over all of them. No teacher.

    Args:
        class_weights: weight of each label where it is 1, relative to where it is 0; None weighs both equally.
    """

    class_weights: tuple[NonNegative, ...] | None = None
    needs_teacher = False

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        logits = student.logits.float()
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights)

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()


@dataclass(frozen=True)
class BinaryKL:
    """`binary_kl_divergence` from the teacher, at a temperature that may be a schedule."""

    temperature: Annotated[Scheduled, Range(above=0)] = 2.0
    reduction: Reduction = "batchmean"
    needs_teacher = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        return binary_kl_divergence(student.logits, target.logits, at(self.temperature, progress), self.reduction)

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()


@dataclass(frozen=True)
class SoftBinaryCrossEntropy:
    """Cross-entropy of each output with the teacher's probability, summed over the outputs of a sample.

    Args:
        reduction: as in `binary_kl_divergence`.
    """

    reduction: Reduction = "batchmean"
    needs_teacher = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        logits, soft = student.logits.float(), F.sigmoid(target.logits.float())
        total = F.binary_cross_entropy_with_logits(logits, soft, reduction="sum")
        return total / (logits.numel() if self.reduction == "mean" else logits.shape[0])

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()
