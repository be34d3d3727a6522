"""The stages that several recipes share: a teacher on the labels, a student under its teacher."""

from __future__ import annotations

from bitstill.errors import SpecError
from bitstill.losses.features import AttentionTransfer, Pair
from bitstill.losses.logits import KL, CrossEntropy, Loss, MeanSquaredError, Reduction
from bitstill.schedules import Cosine
from bitstill.train.optim import SGD
from bitstill.train.stage import Stage, Term


def distillation_terms(
    *,
    temperature: float,
    kd_weight: float,
    reduction: Reduction,
    pairs: tuple[Pair, ...] = (),
    pair_weight: float = 0.0,
    teacher: str = "teacher",
    regression: bool = False,
) -> tuple[Term, ...]:
    """Lam T^2 KL(teacher || student) + (1 - lam) CE (Hinton et al. 2015), plus attention transfer over layer pairs.

    For regression both are squared errors: a KL over one output is identically zero.
    """
    imitate: Loss = MeanSquaredError() if regression else KL(temperature, reduction)
    terms = [Term(imitate, teacher=teacher, weight=kd_weight)] if kd_weight > 0 else []
    if kd_weight < 1:
        terms.append(Term(label_loss(regression), weight=1.0 - kd_weight))
    if pairs:
        terms.append(Term(AttentionTransfer(pairs), teacher=teacher, weight=pair_weight))
    return tuple(terms)


def label_loss(regression: bool) -> Loss:
    """What compares a model with the labels."""
    return MeanSquaredError() if regression else CrossEntropy()


def check_kd_weight(kd_weight: float, where: str) -> None:
    """Refuse a share of the distillation loss that is not from 0 to 1.

    Raises:
        SpecError: naming the recipe `where`.
    """
    if not 0 <= kd_weight <= 1:
        raise SpecError("kd_weight from 0 to 1", given=str(kd_weight), where=where, fix="Paper: 0.7.")


def teacher_stage(
    epochs: float, batch_size: int, lr: float, weight_decay: float, augment: bool, regression: bool = False
) -> Stage:
    """Supervised training of the teacher."""
    return Stage(
        "teacher",
        train=("teacher",),
        terms=(Term(label_loss(regression), student="teacher"),),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=SGD(Cosine(lr, warmup=0.05), weight_decay=weight_decay),
        augment=augment,
    )
