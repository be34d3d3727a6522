"""Losses on logits: pure functions, and frozen dataclasses around them that a recipe can print, compare and save.

Every loss is called as `loss(student, target, labels, progress)` and returns a scalar; `student` and `target` are `Output`s,
`target` the teacher's (detached) or None. The reduction is part of each definition: dividing a KL by the number of classes,
as some published code does without mention, changes its weight tenfold on CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from bitstill.constraints import FractionBelowOne, NonNegative, Range, check_fields
from bitstill.errors import DataError
from bitstill.losses.taps import Output
from bitstill.schedules import Scheduled, at

Reduction = Literal["batchmean", "mean"]


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) (Hinton, Vinyals, Dean 2015).

    Args:
        student, teacher: logits (batch, classes).
        temperature: T > 0; the factor T^2 keeps the magnitude of the gradient independent of it.
        reduction: "batchmean" divides the sum by the batch size, as a mean KL is defined; "mean" also by the number of
            classes, as in the code of Polino et al. (2018).
    """
    divergence = F.kl_div(
        F.log_softmax(student.float() / temperature, -1),
        F.log_softmax(teacher.float() / temperature, -1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / (student.numel() if reduction == "mean" else student.shape[0])


def soft_cross_entropy(student: Tensor, teacher: Tensor, reduction: Reduction) -> Tensor:
    """-sum softmax(teacher) log softmax(student): the loss of TernaryBERT, BinaryBERT and XTC, T = 1.

    Args:
        student, teacher: logits (batch, classes).
        reduction: as `kl_divergence`; those systems use "mean".
    """
    total = -(F.softmax(teacher.float(), -1) * F.log_softmax(student.float(), -1)).sum()
    return total / (student.numel() if reduction == "mean" else student.shape[0])


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels, no teacher; mean over the batch, weighted by class weights if there are any.

    Args:
        label_smoothing: share of each label that is distributed over all classes, 0 to 1.
        class_weights: one per class; None weighs all equally.
    """

    label_smoothing: FractionBelowOne = 0.0
    class_weights: tuple[NonNegative, ...] | None = None
    needs_teacher = False

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        if labels.is_floating_point() and labels.ndim == 1:
            raise DataError(
                "classes as labels",
                given=f"{labels.dtype} values",
                where="CrossEntropy",
                fix="Use MeanSquaredError for regression.",
            )
        logits = student.logits.float()
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return F.cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing)

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()


@dataclass(frozen=True)
class MeanSquaredError:
    """Squared error with the teacher's logits, or with the labels if no teacher is named; mean over all elements."""

    needs_teacher = False

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        reference = labels.float().reshape(student.logits.shape) if target is None else target.logits.float()
        return F.mse_loss(student.logits.float(), reference)

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()


@dataclass(frozen=True)
class KL:
    """`kl_divergence` from the teacher, at a temperature that may be a schedule."""

    temperature: Annotated[Scheduled, Range(above=0)] = 2.0
    reduction: Reduction = "batchmean"
    needs_teacher = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        return kl_divergence(student.logits, target.logits, at(self.temperature, progress), self.reduction)

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()


@dataclass(frozen=True)
class SoftCrossEntropy:
    """`soft_cross_entropy` with the teacher."""

    reduction: Reduction = "batchmean"
    needs_teacher = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        return soft_cross_entropy(student.logits, target.logits, self.reduction)

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()
