"""Terms and stages shared by several recipes: supervised training of a teacher, distillation from it."""

from __future__ import annotations

from bitstill.data.objective import Objective
from bitstill.errors import SpecError
from bitstill.losses.features import AttentionTransfer, Pair
from bitstill.losses.logits import Reduction
from bitstill.losses.loss import Loss
from bitstill.schedules import Cosine
from bitstill.train.optim import SGD
from bitstill.train.stage import Stage, Term


def distillation_terms(
    objective: Objective,
    *,
    temperature: float,
    kd_weight: float,
    reduction: Reduction,
    pairs: tuple[Pair, ...] = (),
    pair_weight: float = 0.0,
    teacher: str = "teacher",
) -> tuple[Term, ...]:
    """Lam T^2 KL(teacher || student) + (1 - lam) CE (Hinton et al. 2015), plus attention transfer over layer pairs.

    KL and CE stand for the objective's losses of these families.
    """
    terms = []
    if kd_weight > 0:
        terms.append(Term(objective.imitation_loss("kl", temperature, reduction), teacher=teacher, weight=kd_weight))
    if kd_weight < 1:
        terms.append(Term(label_loss(objective), weight=1.0 - kd_weight))
    if pairs:
        terms.append(Term(AttentionTransfer(pairs), teacher=teacher, weight=pair_weight))
    return tuple(terms)


def label_loss(objective: Objective) -> Loss:
    """Loss of the objective on labels.

    Raises:
        SpecError: it has none.
    """
    loss = objective.label_loss()
    if loss is None:
        name = type(objective).__name__
        fix = "Choose a recipe that learns from a teacher alone, or a task with labels."
        raise SpecError("an objective with a loss on labels", given=f"{name}, which has none", where="recipe", fix=fix)
    return loss


def teacher_stage(
    objective: Objective, *, epochs: float, batch_size: int, lr: float, weight_decay: float, augment: bool
) -> Stage:
    """Supervised training of the teacher."""
    return Stage(
        "teacher",
        train=("teacher",),
        terms=(Term(label_loss(objective), student="teacher"),),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=SGD(Cosine(lr, warmup=0.05), weight_decay=weight_decay),
        augment=augment,
    )
