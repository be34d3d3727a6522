"""Quantized distillation (Polino, Pascanu, Alistarh 2018, section 3.2; ICLR, arXiv 1802.05668).

At every step the latent weights are quantized, forward and backward run at the quantized weights under the distillation loss,
and SGD updates the latent weights; at the end Q(w) is delivered. Where the published code differs from good practice, the
default here is good practice and the published way is an option: see `reduction`, `skip` and `granularity`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bitstill.constraints import Count, Epochs, Fraction, FractionBelowOne, NonNegative, Positive, check_fields
from bitstill.errors import SpecError
from bitstill.losses.features import Pair
from bitstill.losses.logits import Reduction
from bitstill.model.width import check_fraction
from bitstill.quant.granularity import Granularity, PerGroup
from bitstill.quant.rules import (
    Binary,
    Bits,
    Clipped,
    Compression,
    ExactScale,
    Gradient,
    QuantizeInput,
    Quantizer,
    ScaleDtype,
    StraightThrough,
    Ternary,
    Uniform,
)
from bitstill.recipes.recipe import RunContext
from bitstill.recipes.supervision import distillation_terms, teacher_stage
from bitstill.schedules import Cosine
from bitstill.train.actions import Compress, ReduceWidth, Skip
from bitstill.train.optim import SGD
from bitstill.train.stage import Action, Stage


@dataclass(frozen=True)
class QuantizedDistillation:
    """Settings of quantized distillation.

    Args:
        bits: 1 (binary), "ternary", or 2 to 8 (affine, min-max; paper: 2, 4, 8); None trains the student in float, the
            distilled baseline.
        granularity: which weights share a scale (paper: `Bucket(256)`, whose groups cross rows and cannot be exported).
        scale_dtype: precision of scales on disk and in training (paper: "float32").
        skip: layers left in float: "roles" the stem and the classifier, "none" (paper, small students), or "paper", its code's
            literal first and last tensor.
        rounding: "nearest" (paper) or "stochastic" in training.
        gradient: gradient rule of the quantizer (paper: `StraightThrough()`, with the other two as its options).
        input: input quantization (paper: None).
        temperature, kd_weight: T and lam of lam T^2 KL + (1 - lam) CE (paper's code: 2 and 0.7).
        reduction: reduction of the KL over the batch: "batchmean", or "mean" (paper's code: also divides by the number of
            classes).
        pairs, pair_weight: layer pairs for attention transfer in addition to the logits, and its weight (paper: none).
        epochs, batch_size, lr, weight_decay: SGD with Nesterov momentum 0.9, cosine schedule with 5 % warm-up.
        steps: duration in optimizer steps instead of epochs.
        augment: use the task's augmentation; without it the teacher's outputs are computed only once.
        float_epochs: epochs of distillation in float before quantization (paper: 0).
        channels: fraction of the student's channels, neurons and heads to remove first: structured pruning (paper: 0).
        multiple: remaining widths are multiples of it.
        teacher_epochs, teacher_lr: of a teacher that must be trained first.
        clip_norm: global L2 norm to which the gradient is clipped; None does not clip.
        weight_quantizer: any quantizer, instead of the one defined by `bits`, `granularity`, `scale_dtype`, `rounding` and
            `gradient`.
    """

    bits: Bits | None = 4
    granularity: Granularity = PerGroup(128)
    scale_dtype: ScaleDtype = "float16"
    skip: Skip = "roles"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    gradient: Gradient = field(default_factory=StraightThrough)
    input: QuantizeInput | None = None
    temperature: Positive = 2.0
    kd_weight: Fraction = 0.7
    reduction: Reduction = "batchmean"
    pairs: tuple[Pair, ...] = ()
    pair_weight: NonNegative = 1.0
    epochs: Epochs = 30
    steps: Count | None = None
    augment: bool = True
    batch_size: Count = 128
    lr: Positive = 0.02
    weight_decay: NonNegative = 5e-4
    float_epochs: Epochs = 0
    channels: FractionBelowOne = 0.0
    multiple: Count = 1
    teacher_epochs: Epochs = 30
    teacher_lr: Positive = 0.02
    clip_norm: Positive | None = None
    weight_quantizer: Quantizer | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.quantizer() is None and self.input is not None:
            raise SpecError(
                "quantized weights where inputs are quantized",
                given="bits=None with an input quantizer",
                where="QuantizedDistillation",
                fix="Set bits, or leave input out.",
            )
        check_fraction(self.channels, self.multiple)

    @property
    def needs_teacher(self) -> bool:
        """Unless `kd_weight` is 0 and there are no layer pairs."""
        return self.kd_weight > 0 or bool(self.pairs)

    def quantizer(self) -> Quantizer | None:
        """Weight quantizer; None for the float baseline.

        Raises:
            SpecError: incompatible bits, rounding and gradient rule.
        """
        if self.weight_quantizer is not None or self.bits is None:
            return self.weight_quantizer
        if self.bits in (1, "ternary"):
            if isinstance(self.gradient, ExactScale) or self.rounding == "stochastic":
                raise SpecError(
                    "2 to 8 bits for stochastic rounding or the exact-scale gradient",
                    given=f"bits={self.bits}",
                    where="QuantizedDistillation",
                    fix="Use rounding='nearest' and StraightThrough() or Clipped().",
                )
            gradient: StraightThrough | Clipped = self.gradient
            simple = Binary if self.bits == 1 else Ternary
            return simple(granularity=self.granularity, gradient=gradient, scale_dtype=self.scale_dtype)
        assert isinstance(self.bits, int)
        return Uniform(
            bits=self.bits,
            granularity=self.granularity,
            rounding=self.rounding,
            gradient=self.gradient,
            scale_dtype=self.scale_dtype,
        )

    @property
    def makes_student(self) -> bool:
        """Never: the student is given."""
        return False

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """[teacher ->] [float student ->] quantized student."""
        terms = distillation_terms(
            context.objective,
            temperature=self.temperature,
            kd_weight=self.kd_weight,
            reduction=self.reduction,
            pairs=self.pairs,
            pair_weight=self.pair_weight,
        )
        optimizer = SGD(Cosine(self.lr, warmup=0.05), weight_decay=self.weight_decay)
        quantizer = self.quantizer()
        rule = None if quantizer is None else Compression(weight=quantizer, input=self.input)
        first = teacher_stage(
            context.objective,
            epochs=self.teacher_epochs,
            batch_size=self.batch_size,
            lr=self.teacher_lr,
            weight_decay=self.weight_decay,
            augment=self.augment,
        )
        narrow: tuple[Action, ...] = (ReduceWidth("student", self.channels, self.multiple),) if self.channels else ()
        compress: tuple[Action, ...] = () if rule is None else (Compress("student", rule, self.skip),)
        warm = Stage(
            "float student",
            terms=terms,
            epochs=self.float_epochs or 1,
            batch_size=self.batch_size,
            optimizer=optimizer,
            augment=self.augment,
            begin=narrow,
        )
        main = Stage(
            "distillation" if rule is None else "quantized distillation",
            terms=terms,
            epochs=self.epochs if self.steps is None else None,
            steps=self.steps,
            batch_size=self.batch_size,
            augment=self.augment,
            optimizer=optimizer,
            clip_norm=self.clip_norm,
            begin=compress if self.float_epochs else (*narrow, *compress),
        )
        return (*((first,) if "teacher" in context.untrained else ()), *((warm,) if self.float_epochs else ()), main)
