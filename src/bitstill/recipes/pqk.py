"""PQK (Kim, Chang, Kwak 2021; Interspeech, arXiv 2106.14681): prune, quantize, learn from the weights that were pruned away.

No pretrained teacher. Phase 1 trains the network from scratch while masks and quantizer take hold; only important weights
learn. Phase 2 gives the pruned weights back to a second view of the same network, warms it up on the labels, and lets both
views teach each other. The pruned, quantized view is delivered. The paper leaves many choices open; each one made here is an
option, taken from the same first author's published code (DCIL, arXiv 2109.04660) where that answers it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from bitstill.constraints import Count, Epochs, Fraction, FractionBelowOne, NonNegative, Positive, Range, check_fields
from bitstill.errors import SpecError
from bitstill.quant.granularity import Granularity, PerChannel
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
    """Settings of PQK. What is marked (open) the paper does not say.

    Args:
        bits: 2 to 8 (learned step size, LSQ), 1 (binary) or "ternary" (open).
        granularity: which weights share a scale or step (open).
        scale_dtype: precision of scales on disk and in training.
        input: input quantization of the student's layers; None keeps inputs in float (open).
        skip: layers left in float and dense: "roles" the stem and the classifier, or "none" (open).
        sparsity: fraction of zeros at the end of phase 1, 0 to below 1.
        scope: "global" ranks the weights of all layers together (DCIL), "layer" prunes that fraction of each.
        within: N:M sparsity: the zeros are sparsity * within of every `within` consecutive weights; None leaves places free.
        gradient: "masked", only important weights learn in phase 1 (paper), or "dense".
        schedule: of the sparsity: "cubic" (DCIL), "linear", or "one-shot", all at once where the ramp ends.
        ramp: fraction of phase 1 until which the sparsity grows; masks stay from then on (open).
        every: steps between two placements of the masks (DCIL: 16).
        epochs: of phase 1; four fifths of all, similar to DCIL. With half of them for phase 2, and pruned in half the time, the
            network loses more than it learns from its other view (benchmarks/pqk.py).
        warmup_epochs: of the dense view on the labels, only spare weights, its norms and its classifier learn.
        mutual_epochs: of both views teaching each other; 0 ends after phase 1, without a dense view.
        temperature: of the mutual distillation, with the factor T^2 (DCIL: 2).
        kd_weight: of each distillation term beside the cross-entropy of each view (DCIL: 1).
        teacher_norms, teacher_head: the dense view has norm layers, and a classifier, of its own (DCIL: both).
        batch_size, lr, momentum, weight_decay: SGD with Nesterov momentum, cosine schedule (open).
        warmup_lr: peak learning rate of the warm-up, with a schedule of its own (open).
        mutual_lr: the same of mutual learning; None goes on with phase 1's cosine, which then ends where mutual learning does,
            so that the student is not shaken twice (open).
        optimizer: "sgd", or "adamw" for transformers (choose lr accordingly).
        validations: how often each stage's delivered form is judged; the last stage keeps the best.
        clip_norm: of the gradient.
        augment: use the task's augmentation; both views see the same augmented batch.
        weight_quantizer: any quantizer, instead of the one that `bits`, `granularity` and `scale_dtype` stand for.
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
        """The teacher is the student itself with its spare weights."""
        return False

    @property
    def makes_student(self) -> bool:
        """The student is given, trained or not."""
        return False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """Pruning and quantization [-> warm-up of the dense view -> mutual learning]."""
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
        if not self.mutual_epochs:
            return (first,)
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
        return (first, warm, mutual)

    def _handover(self) -> float:
        """The learning rate with which phase 1 ends: 0, or that of one cosine over phase 1 and mutual learning."""
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
        dense = replace(prune, sparsity=0.0)  # the schedule's first value, which the quantizer starts from
        return Compression(weight=self._quantizer(), input=self.input, prune=dense)

    def _quantizer(self) -> Quantizer:
        if self.weight_quantizer is not None:
            return self.weight_quantizer
        if self.bits in (1, "ternary"):
            return quantizer(self.bits, self.granularity, scale_dtype=self.scale_dtype)
        assert isinstance(self.bits, int)
        return LearnedStep(self.bits, granularity=self.granularity, dead_zone=False, scale_dtype=self.scale_dtype)
