"""Differentiable quantization (Polino, Pascanu, Alistarh 2018, section 4): quantization points learn, weights stay fixed.

The start is a distilled float student. Points begin at quantiles of the scaled weights, may be redistributed among the layers
by gradient norm, and are trained to imitate the unquantized student itself (as in the published code) or the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from bitstill.constraints import Count, Epochs, Fraction, NonNegative, Positive, Range, check_fields
from bitstill.data.objective import Objective
from bitstill.errors import SpecError
from bitstill.losses.logits import Reduction
from bitstill.quant.granularity import Granularity, PerGroup
from bitstill.quant.rules import Compression, Points, ScaleDtype
from bitstill.recipes.recipe import RunContext
from bitstill.recipes.supervision import distillation_terms, teacher_stage
from bitstill.schedules import Cosine, Linear
from bitstill.train.actions import Compress, Copy, SharePoints, Skip
from bitstill.train.optim import SGD, AdamW, Optimizer
from bitstill.train.stage import Action, Stage


@dataclass(frozen=True)
class DifferentiableQuantization:
    """Settings of differentiable quantization.

    Args:
        bits: 1 to 8; each tensor starts with 2^bits points.
        granularity: which weights share a range (paper: `Bucket(256)`, whose groups cross rows and cannot be exported).
        scale_dtype: precision of ranges on disk and in training (paper: "float32").
        skip: layers left in float: "roles" the stem and the classifier, "none" (paper, small students), or "paper", its code's
            literal first and last tensor.
        init: where points start, "quantiles" (paper) or "uniform".
        share_points: redistribute points among layers by gradient norm (paper: yes; at 2 bits some layers get too few).
        teacher: "self", the unquantized student (paper's code), or "teacher".
        alternate: also train the weights, in turns of one epoch each, ending on the weights, which keep the learned points (the
            paper's mixed mode starts points afresh in each turn and trains weights under uniform levels).
        temperature, kd_weight: T and lam of lam T^2 KL + (1 - lam) CE (paper's code: 2 and 0.7).
        reduction: reduction of the KL over the batch: "batchmean", or "mean" (paper's code: also divides by the number of
            classes).
        epochs: epochs of the points (paper: 10 at 4 bits, 20 at 2 bits), in total when alternating.
        steps: duration of the points' training in optimizer steps instead of epochs; not when alternating.
        augment: use the task's augmentation.
        batch_size: samples per step.
        point_lr: initial learning rate of the points, under a cosine schedule. Higher rates overshoot: as points move, weights
            switch to other points. The optimizer is Adam, since a point's gradient is a sum over all its weights: with plain
            SGD, a rate that suits a small layer makes a large one diverge (paper: SGD, 1e-6 to 1e-4).
        float_epochs: epochs of distillation in float before that; 0 for a student that is already trained.
        lr, weight_decay: of float distillation, and of the weights when alternating.
        teacher_epochs, teacher_lr: of a teacher that must be trained first.
    """

    bits: Annotated[int, Range(least=1, most=8)] = 4
    granularity: Granularity = PerGroup(128)
    scale_dtype: ScaleDtype = "float16"
    skip: Skip = "roles"
    init: Literal["quantiles", "uniform"] = "quantiles"
    share_points: bool = False
    teacher: Literal["self", "teacher"] = "self"
    alternate: bool = False
    temperature: Positive = 2.0
    kd_weight: Fraction = 0.7
    reduction: Reduction = "batchmean"
    epochs: Epochs = 10
    steps: Count | None = None
    augment: bool = True
    batch_size: Count = 128
    point_lr: Positive = 1e-3
    float_epochs: Epochs = 30
    lr: Positive = 0.02
    weight_decay: NonNegative = 5e-4
    teacher_epochs: Epochs = 30
    teacher_lr: Positive = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        if self.alternate and self.steps is not None:
            raise SpecError(
                "epochs when alternating",
                given=f"steps={self.steps}",
                where="DifferentiableQuantization",
                fix="Set epochs instead.",
            )

    @property
    def needs_teacher(self) -> bool:
        """If there is float distillation, or the points imitate the teacher."""
        return self.float_epochs > 0 or self.teacher == "teacher"

    @property
    def makes_student(self) -> bool:
        """Never: the student is given."""
        return False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """[teacher ->] [float student ->] points, or points and weights alternating."""
        head: list[Stage] = []
        objective = context.objective
        if "teacher" in context.untrained:
            head.append(
                teacher_stage(
                    objective,
                    epochs=self.teacher_epochs,
                    batch_size=self.batch_size,
                    lr=self.teacher_lr,
                    weight_decay=self.weight_decay,
                    augment=self.augment,
                )
            )
        if self.float_epochs:
            sgd = SGD(Cosine(self.lr, warmup=0.05), weight_decay=self.weight_decay)
            head.append(replace(self._stage("float student", "teacher", sgd, objective), epochs=self.float_epochs))
        optimizer = AdamW(Cosine(self.point_lr), weight_decay=0.0)
        points = replace(self._stage("points", self.teacher, optimizer, objective), parameters="learned")
        if not self.alternate:
            epochs = self.epochs if self.steps is None else None
            return (*head, replace(points, epochs=epochs, steps=self.steps, begin=self._begin()))
        turns = max(1, round(self.epochs))
        for turn in range(turns):
            head.append(replace(points, name=f"points {turn + 1}", begin=self._begin() if turn == 0 else ()))
            head.append(self._weights(turn, turns, objective))
        return tuple(head)

    def _begin(self) -> tuple[Action, ...]:
        points = Points(2**self.bits, self.init, self.granularity, self.scale_dtype)
        copy = (Copy("student", "self"),) if self.teacher == "self" else ()
        share = (SharePoints("student", batch_size=self.batch_size),) if self.share_points else ()
        return (*copy, Compress("student", Compression(weight=points), self.skip), *share)

    def _weights(self, turn: int, turns: int, objective: Objective) -> Stage:
        """One epoch for the weights; their learning rate falls from a tenth of `lr` to zero over all turns."""
        start, end = (0.1 * self.lr * (1 - t / turns) for t in (turn, turn + 1))
        optimizer = SGD(Linear(start, end), weight_decay=self.weight_decay)
        return replace(self._stage(f"weights {turn + 1}", self.teacher, optimizer, objective), parameters="weights")

    def _stage(self, name: str, teacher: str, optimizer: Optimizer, objective: Objective) -> Stage:
        terms = distillation_terms(
            objective,
            temperature=self.temperature,
            kd_weight=self.kd_weight,
            reduction=self.reduction,
            teacher=teacher,
        )
        return Stage(name, terms=terms, epochs=1, batch_size=self.batch_size, optimizer=optimizer, augment=self.augment)
