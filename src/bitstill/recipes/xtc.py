"""XTC (Wu, Yao, Zhang, Li, He 2022; NeurIPS, arXiv 2206.01859): extreme compression of a transformer in a single stage.

The student starts as a copy of the task's teacher, or of some of its layers, and imitates logits, hidden states and attention
scores at once: first in float if layers were removed, then at 1 bit (or ternary, or more) with 8-bit inputs, on a long
schedule. Where the published code differs from good practice, the default here is good practice and the published way is an
option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bitstill.constraints import Count, Epochs, FractionBelowOne, NonNegative, Positive, WholeNumber, check_fields
from bitstill.data.augmentation import Variants
from bitstill.data.objective import Objective
from bitstill.errors import SpecError
from bitstill.losses.layer_maps import LayerMap
from bitstill.losses.logits import Reduction
from bitstill.model.blocks import Choice
from bitstill.quant.granularity import Granularity, PerChannel
from bitstill.quant.rules import Bits, Compression, QuantizeInput, Quantizer, ScaleDtype, quantizer
from bitstill.recipes.fine_tuning import FineTuning
from bitstill.recipes.general_distillation import GeneralDistillation
from bitstill.recipes.recipe import Models, RunContext
from bitstill.recipes.supervision import label_loss
from bitstill.recipes.transformer_stages import (
    encoder_rules,
    feature_terms,
    in_parts,
    logit_terms,
    set_dropout,
    source_layers_of,
    start_chain,
)
from bitstill.schedules import WarmupLinear
from bitstill.train.actions import Compress, Uncompress
from bitstill.train.optim import AdamW
from bitstill.train.stage import Stage, Term

Schedule = Literal["single", "two", "three"]


@dataclass(frozen=True)
class XTC:
    """Settings of XTC.

    Args:
        bits: 1 (binary), "ternary" (the paper's 2 bits), or 2 to 8 (affine, min-max); None stops at the smaller float student.
        granularity: which weights of a matrix share a scale (paper: `PerTensor()`).
        scale_dtype: precision of scales on disk and in training (paper: "float32").
        input: input quantization of the layers whose weights are quantized; None keeps inputs in float.
        embeddings: quantize the word embeddings too, one scale per row; position and type embeddings stay in float.
        pooler: quantize the pooler too, or whatever lies between the blocks and the classifier (paper: no).
        learned_scales: train the scales of binary and ternary matrices along with the weights (paper: no).
        progressive: intermediate bits, such as (8, 4, "ternary"); each gets an equal share of the epochs (paper: none).
        layers: the teacher's layers that the student keeps: a number, or a list of indices from 0; None keeps all.
        choice: which ones, where `layers` is a number: "skip" (evenly, ending with the last), "paper" (the same for 6 of 12,
            but 2, 4, 6, 8 and 10 for 5 of 12), "top" or "bottom".
        layer_map: "last" matches the student's last layer with the teacher's last, "paper" with the one it was copied from.
        schedule: "single" (paper: all terms at once); "two": hidden states and attention, then logits; "three": the same with
            all terms in between. The parts share the epochs equally.
        logit_weight: weight of the soft cross-entropy with the teacher, or the objective's loss of that family; 0 omits it
            (paper: 1).
        hidden_weight: weight of the squared error of hidden states, mean over unpadded positions and hidden size, summed over
            layers (paper: 1).
        attention_weight: weight of the squared error of attention scores before the softmax, mean over heads and pairs of
            unpadded positions, summed over layers (paper: 1, padding included).
        relation_heads: compare relations within queries, keys and values, regrouped into this many heads, instead of attention
            scores (MiniLMv2; paper: no).
        padded_to: sum both errors over unpadded positions and divide as if sequences were padded to this length (paper: 128);
            short texts then weigh less, scores by the square. None takes the means.
        label_weight: weight of the loss on the labels (paper: 0).
        reduction: reduction of the soft cross-entropy: "mean" also divides by the number of classes (paper), "batchmean" does
            not.
        epochs, batch_size, lr, weight_decay, warmup: AdamW, linear warm-up over that fraction, then linear decay to 0 (paper:
            up to 18 epochs, 36 with fewer layers; lr 2e-5 to 5e-4; warm-up of one epoch).
        steps: duration of each trained stage in optimizer steps instead of epochs.
        float_epochs, float_lr: of the student in float before quantization; None is `epochs` if layers were removed, else 0.
        bias_correction: bias correction of AdamW; without it early steps are longer (BertAdam).
        dropout: dropout of the student in training; None keeps the teacher's.
        validations: evaluations of the delivered form on the validation split per stage; the best weights are kept (paper:
            every 1,000 steps).
        clip_norm: global L2 norm to which the gradient is clipped; None does not clip.
        augment: use the task's augmentation, if it has one.
        variants: also train on variants of the task's texts, generated before the run (Jiao et al. 2020); None omits them.
        general: general distillation of the student on a corpus of plain text first (Jiao et al. 2020); None omits it (paper).
        teacher_epochs, teacher_lr: fine-tuning of a teacher whose classifier is new.
    """

    bits: Bits | None = 1
    granularity: Granularity = PerChannel()
    scale_dtype: ScaleDtype = "float16"
    input: QuantizeInput | None = field(default_factory=QuantizeInput)
    embeddings: bool = True
    pooler: bool = False
    learned_scales: bool = False
    progressive: tuple[Bits, ...] = ()
    layers: WholeNumber | tuple[WholeNumber, ...] | None = None
    choice: Choice = "skip"
    layer_map: LayerMap = "last"
    schedule: Schedule = "single"
    logit_weight: NonNegative = 1.0
    hidden_weight: NonNegative = 1.0
    attention_weight: NonNegative = 1.0
    relation_heads: Count | None = None
    padded_to: Count | None = None
    label_weight: NonNegative = 0.0
    reduction: Reduction = "mean"
    epochs: Epochs = 6
    steps: Count | None = None
    batch_size: Count = 32
    lr: Positive = 3e-4
    weight_decay: NonNegative = 0.01
    warmup: FractionBelowOne = 0.1
    float_epochs: Epochs | None = None
    float_lr: Positive = 1e-4
    bias_correction: bool = True
    dropout: FractionBelowOne | None = None
    validations: Count = 20
    clip_norm: Positive | None = 1.0
    augment: bool = True
    variants: Variants | None = None
    general: GeneralDistillation | None = None
    teacher_epochs: Epochs = 3
    teacher_lr: Positive = 5e-5

    def __post_init__(self) -> None:
        check_fields(self)
        weights = {"logit": self.logit_weight, "hidden": self.hidden_weight, "attention": self.attention_weight}
        if not any(weights.values()):
            given = ", ".join(f"{name}_weight={weight}" for name, weight in weights.items())
            fix = "The paper sets all three to 1."
            raise SpecError("a weight above 0 for one of the teacher's terms", given=given, where="XTC", fix=fix)
        if self.schedule != "single" and not (self.logit_weight and (self.hidden_weight or self.attention_weight)):
            fix = "A schedule in parts separates them; use schedule='single'."
            raise SpecError("logits and hidden states or attention", given="only one of them", where="XTC schedule", fix=fix)
        if len(set(self._all_bits())) < len(self._all_bits()):
            fix = "Each is a stage of its own, named after its bits."
            raise SpecError("different bits", given=str(self._all_bits()), where="XTC progressive", fix=fix)
        if self.bits is None and self.progressive:
            raise SpecError("bits at the end", given="None", where="XTC progressive", fix="Set bits.")
        if self.bits is None and self.layers is None and not self.float_epochs:
            fix = "Set bits, or layers to make the student smaller in float."
            raise SpecError("something to compress", given="bits=None and all layers", where="XTC", fix=fix)
        for bits in self._all_bits():
            self._quantizer(bits)

    @property
    def needs_teacher(self) -> bool:
        """Always: the student is copied from the teacher, and imitates it."""
        return True

    @property
    def makes_student(self) -> bool:
        """Always: a copy of the teacher, or of some of its layers, unless a student is given."""
        return True

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """[general distillation ->] [teacher ->] [float student ->] quantized student, each in one, two or three parts."""
        models, objective = context.models, context.objective
        depth, source_layers = source_layers_of(self.layers, self.choice, models, "XTC")
        tuning = FineTuning(self.teacher_epochs, batch_size=self.batch_size, lr=self.teacher_lr)
        chain = start_chain(context, source_layers, depth, general=self.general, tuning=tuning)
        parts = self._parts(source_layers, depth, objective)
        chain.act(*set_dropout(self.dropout))
        float_epochs = self.float_epochs
        if float_epochs is None:
            untrained = "student" not in models and self.general is None
            float_epochs = self.epochs if len(source_layers) < depth and untrained else 0
        if float_epochs:
            chain.train(*self._run("float student", parts, float_epochs, self.float_lr))
        bits = self._all_bits()
        for number, each in enumerate(bits):
            chain.act(*((Uncompress("student"),) if number else ()), Compress("student", self._rules(each, models)))
            chain.train(*self._run(_named(each), parts, self.epochs / len(bits), self.lr))
        return chain.stages("XTC", "neither bits nor epochs", "Set bits, or float_epochs to train the student as it is.")

    def _quantizer(self, bits: Bits) -> Quantizer:
        learned = self.learned_scales and bits in (1, "ternary")
        return quantizer(bits, self.granularity, scale_dtype=self.scale_dtype, learned_scale=learned)

    def _all_bits(self) -> tuple[Bits, ...]:
        return () if self.bits is None else (*self.progressive, self.bits)

    def _parts(self, source_layers: tuple[int, ...], depth: int, objective: Objective) -> dict[str, tuple[Term, ...]]:
        """Terms by name of the stage's part."""
        logits = logit_terms(self.logit_weight, objective, self.reduction)
        weights = (self.hidden_weight, self.attention_weight)
        others = (self.relation_heads, self.padded_to)
        features = feature_terms(source_layers, depth, self.layer_map, *weights, "teacher", *others)
        labels = (Term(label_loss(objective), weight=self.label_weight),) if self.label_weight else ()
        together = (*logits, *features, *labels)
        return {
            "single": {"": together},
            "two": {"features": features, "logits": (*logits, *labels)},
            "three": {"features": features, "all": together, "logits": (*logits, *labels)},
        }[self.schedule]

    def _run(self, name: str, parts: dict[str, tuple[Term, ...]], epochs: float, lr: float) -> list[Stage]:
        whole = Stage(
            name,
            terms=next(iter(parts.values())),
            data=self.variants or "task",
            epochs=epochs if self.steps is None else None,
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=self._optimizer(lr),
            clip_norm=self.clip_norm,
            augment=self.augment,
            validations=self.validations,
        )
        judged = ("", "logits")  # the other parts do not train the task's outputs
        return in_parts(whole, {p: {"terms": t, "keep": "best" if p in judged else "last"} for p, t in parts.items()})

    def _optimizer(self, lr: float) -> AdamW:
        schedule = WarmupLinear(lr, warmup=self.warmup)
        return AdamW(schedule, weight_decay=self.weight_decay, bias_correction=self.bias_correction)

    def _rules(self, bits: Bits, models: Models) -> tuple[Compression, ...]:
        student = models.get("student", models["teacher"])
        rows, matrices = bits if self.embeddings else None, self._quantizer(bits)
        return encoder_rules(student, matrices, self.input, embeddings=rows, scale_dtype=self.scale_dtype, pooler=self.pooler)


def _named(bits: Bits) -> str:
    return {1: "binary", "ternary": "ternary"}.get(bits, f"{bits} bits")
