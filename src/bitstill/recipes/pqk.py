"""PQK (Kim, Chang, Kwak 2021; Interspeech, arXiv 2106.14681): prune, quantize, and distil from the pruned weights.

No pretrained teacher. Phase 1 trains the network from scratch under growing masks and quantization; only important weights
learn. Phase 2 builds a second, dense view of the same network from its pruned weights, warms it up on the labels, and trains
both views by mutual learning. The pruned, quantized view is delivered. The paper leaves many choices open; each is an option
here, with the default of the same first author's published code (DCIL, arXiv 2109.04660) where that has one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from bitstill.constraints import Count, Epochs, Fraction, FractionBelowOne, NonNegative, Positive, Range, check_fields
from bitstill.errors import SpecError
from bitstill.quant.granularity import Granularity, PerChannel
from bitstill.quant.lsq import StepStart
from bitstill.quant.rules import Bits, Compression, LearnedStep, Prune, QuantizeInput, Quantizer, ScaleDtype, quantizer
from bitstill.recipes.recipe import RunContext
from bitstill.recipes.supervision import label_loss
from bitstill.schedules import Cosine, Cubic, Linear, Scheduled
from bitstill.train.actions import AddDenseView, Compress, Skip
from bitstill.train.optim import SGD, AdamW, Optimizer
from bitstill.train.pruning import Pruning
from bitstill.train.stage import Stage, Term


@dataclass(frozen=True)
class PQK:
    """Settings of PQK. The paper does not specify those marked (open).

    Args:
        bits: 2 to 8 (learned step size, LSQ), 1 (binary) or "ternary" (open).
        granularity: which weights share a scale or step (open).
        scale_dtype: precision of scales on disk and in training.
        input: input quantization of the student's layers; None keeps inputs in float (open).
        skip: layers left in float and dense: "roles" the stem and the classifier, or "none" (open).
        sparsity: fraction of zeros at the end of phase 1, 0 to below 1.
        scope: "global" ranks the weights of all layers together (DCIL), "layer" prunes that fraction of each.
        within: N:M sparsity: of every `within` consecutive weights, sparsity * within are zero; None does not constrain them.
        gradient: "masked", only important weights learn in phase 1 (paper), or "dense".
        schedule: schedule of the sparsity: "cubic" (DCIL), "linear", or "one-shot", all at once at the end of the ramp.
        ramp: fraction of phase 1 during which the sparsity grows; masks are fixed afterwards (open).
        every: steps between two updates of the masks (DCIL: 16).
        step_start: start of learned steps: "error", where the squared error is least, or "mean", LSQ's published start, which
            at 2 bits is no better than zeros (open).
        float_epochs: epochs of the dense float network before masks and quantizer, on its own cosine (open).
        epochs: epochs of phase 1; four fifths of the total, similar to DCIL. With half of the total for phase 2, and pruned in
            half the time, the network loses more than it learns from its dense view (benchmarks/pqk.py).
        warmup_epochs: epochs of the dense view on the labels; only spare weights, its norms and its classifier learn.
        mutual_epochs: epochs of mutual learning of both views; 0 ends after phase 1, without a dense view.
        temperature: temperature of mutual distillation, with the factor T^2 (DCIL: 2).
        kd_weight: weight of each view's distillation term relative to its cross-entropy (DCIL: 1).
        teacher_norms, teacher_head: give the dense view its own norm layers, and its own classifier (DCIL: both).
        batch_size, lr, momentum, weight_decay: SGD with Nesterov momentum, cosine schedule (open).
        warmup_lr: peak learning rate of the warm-up, with its own schedule (open).
        mutual_lr: peak learning rate of mutual learning; None continues the cosine of phase 1, which then ends with mutual
            learning, so that the rate does not rise again (open).
        optimizer: "sgd", or "adamw" for transformers (choose lr accordingly).
        validations: evaluations of the delivered form per stage; the last stage keeps the best weights.
        clip_norm: global L2 norm to which the gradient is clipped; None does not clip.
        augment: use the task's augmentation; both views see the same augmented batch.
        weight_quantizer: any quantizer, instead of the one defined by `bits`, `granularity` and `scale_dtype`.
    """

    bits: Bits = 4
    granularity: Granularity = PerChannel()
    scale_dtype: ScaleDtype = "float16"
    input: QuantizeInput | None = None
    skip: Skip = "roles"
    sparsity: FractionBelowOne = 0.8
    scope: Literal["layer", "global"] = "global"
    within: Annotated[int, Range(least=2, most=2**31)] | None = None
    gradient: Literal["masked", "dense"] = "masked"
    schedule: Literal["cubic", "linear", "one-shot"] = "cubic"
    ramp: Annotated[float, Range(above=0, most=1)] = 0.6
    every: Count = 16
    step_start: StepStart = "error"
    float_epochs: Epochs = 0
    epochs: Epochs = 48
    warmup_epochs: Epochs = 2
    mutual_epochs: Epochs = 10
    temperature: Positive = 2.0
    kd_weight: Fraction = 1.0
    teacher_norms: bool = True
    teacher_head: bool = True
    batch_size: Count = 64
    lr: Positive = 0.05
    momentum: FractionBelowOne = 0.9
    weight_decay: NonNegative = 1e-4
    warmup_lr: Positive = 0.02
    mutual_lr: Positive | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    validations: Count = 20
    clip_norm: Positive | None = 5.0
    augment: bool = True
    weight_quantizer: Quantizer | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        self._rule()
        self._pruning()
        if self.skip == "paper":
            fix = "That is Polino et al.'s rule."
            raise SpecError("skip 'roles' or 'none'", given="'paper'", where="PQK", fix=fix)
        if bool(self.warmup_epochs) != bool(self.mutual_epochs):
            given = f"warmup_epochs={self.warmup_epochs} and mutual_epochs={self.mutual_epochs}"
            raise SpecError("both stages of phase 2, or neither", given=given, where="PQK", fix="Set both, or both to 0.")

    @property
    def needs_teacher(self) -> bool:
        """Never: the teacher is the student itself with its spare weights."""
        return False

    @property
    def makes_student(self) -> bool:
        """Never: the student is given, trained or not."""
        return False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """[Float ->] pruning and quantization [-> warm-up of the dense view -> mutual learning]."""
        labels = label_loss(context.objective)
        handover = self._handover()
        first = Stage(
            "prune and quantize",
            terms=(Term(labels),),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self._optimizer(Cosine(self.lr, handover, warmup=0.05)),
            clip_norm=self.clip_norm,
            augment=self.augment,
            validations=self.validations,
            pruning=self._pruning(),
            begin=(Compress("student", self._rule(), self.skip),),
        )
        head = (self._float(first), first) if self.float_epochs else (first,)
        if not self.mutual_epochs:
            return head
        warm = replace(
            first,
            name="warm-up of the spare weights",
            train=("teacher",),
            terms=(Term(labels, student="teacher"),),
            epochs=self.warmup_epochs,
            optimizer=self._optimizer(Cosine(self.warmup_lr, warmup=0.05)),
            validations=max(1, self.validations // 4),
            pruning=None,
            begin=(AddDenseView("student", "teacher", self.teacher_norms, self.teacher_head),),
        )
        imitate = context.objective.imitation_loss("kl", self.temperature)
        mutual = replace(
            first,
            name="mutual learning",
            train=("student", "teacher"),
            terms=(
                Term(labels),
                Term(imitate, teacher="teacher", weight=self.kd_weight),
                Term(labels, student="teacher"),
                Term(imitate, student="teacher", teacher="student", weight=self.kd_weight),
            ),
            epochs=self.mutual_epochs,
            optimizer=self._optimizer(Cosine(handover) if self.mutual_lr is None else Cosine(self.mutual_lr, warmup=0.05)),
            keep="best",
            pruning=None,
            begin=(),
        )
        return (*head, warm, mutual)

    def _float(self, first: Stage) -> Stage:
        """The stretch before masks and quantizer."""
        return replace(
            first,
            name="float",
            epochs=self.float_epochs,
            optimizer=self._optimizer(Cosine(self.lr, warmup=0.05)),
            validations=max(1, self.validations // 4),
            pruning=None,
            begin=(),
        )

    def _handover(self) -> float:
        """Learning rate at the end of phase 1: 0, or that of one cosine over phase 1 and mutual learning."""
        if self.mutual_lr is not None or not self.mutual_epochs:
            return 0.0
        return Cosine(self.lr)(self.epochs / (self.epochs + self.mutual_epochs))

    def _optimizer(self, schedule: Cosine) -> Optimizer:
        if self.optimizer == "adamw":
            return AdamW(schedule, weight_decay=self.weight_decay)
        return SGD(schedule, momentum=self.momentum, weight_decay=self.weight_decay)

    def _pruning(self) -> Pruning:
        ramps: dict[str, Scheduled] = {
            "cubic": Cubic(0.0, self.sparsity, until=self.ramp),
            "linear": Linear(0.0, self.sparsity, until=self.ramp),
            "one-shot": Linear(0.0, self.sparsity, begin=max(0.0, self.ramp - 1e-6), until=self.ramp),
        }
        return Pruning(ramps[self.schedule], every=self.every, until=self.ramp)

    def _rule(self) -> Compression:
        prune = Prune(self.sparsity, scope=self.scope, within=self.within, gradient=self.gradient)
        dense = replace(prune, sparsity=0.0)  # the schedule's first value, at which the quantizer is initialized
        return Compression(weight=self._quantizer(), input=self.input, prune=dense)

    def _quantizer(self) -> Quantizer:
        if self.weight_quantizer is not None:
            return self.weight_quantizer
        if self.bits in (1, "ternary"):
            return quantizer(self.bits, self.granularity, scale_dtype=self.scale_dtype)
        assert isinstance(self.bits, int)
        return LearnedStep(
            self.bits, granularity=self.granularity, dead_zone=False, scale_dtype=self.scale_dtype, start=self.step_start
        )
