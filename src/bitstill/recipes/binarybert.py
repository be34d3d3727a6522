"""BinaryBERT (Bai et al. 2021; ACL, arXiv 2012.15701): a binary transformer by way of a ternary one of half the width.

Each model on the way is trained in two stages: first on hidden states and attention scores (Stage I), then on logits (Stage
II). The small float student is cut from the teacher; its ternary form learns from it; ternary weight splitting turns that,
without changing its outputs, into a binary model of twice the weights, which is trained further. Where the published code
differs from good practice, the default here is good practice and the published way is an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from torch import nn

from bitstill.constraints import Count, Epochs, FractionBelowOne, NonNegative, Positive, Range, WholeNumber, check_fields
from bitstill.data.augmentation import Variants
from bitstill.data.objective import Objective
from bitstill.errors import SpecError
from bitstill.losses.layer_maps import LayerMap
from bitstill.losses.logits import Reduction
from bitstill.model.blocks import Choice
from bitstill.model.split_layers import splittable_layers
from bitstill.model.width import attention_layers
from bitstill.quant.granularity import Granularity, PerChannel
from bitstill.quant.rules import Binary, Bits, Compression, QuantizeAttention, QuantizeInput, ScaleDtype, Ternary
from bitstill.recipes.fine_tuning import FineTuning
from bitstill.recipes.general_distillation import GeneralDistillation
from bitstill.recipes.recipe import Models, RunContext
from bitstill.recipes.transformer_stages import (
    StageChain,
    encoder_rules,
    feature_terms,
    in_parts,
    logit_terms,
    set_dropout,
    source_layers_of,
    start_chain,
)
from bitstill.schedules import WarmupLinear
from bitstill.train.actions import Compress, CompressAttention, Copy, Importance, ReduceWidth, SplitTernary
from bitstill.train.adaptive import ChooseTernary
from bitstill.train.optim import AdamW
from bitstill.train.stage import Action, Stage, Term

_Parts = dict[str, tuple[Term, ...]]
"""The terms of Stage I and Stage II, by name."""


@dataclass(frozen=True)
class BinaryBERT:
    """Settings of BinaryBERT.

    Args:
        bits: last model of the chain: 1, or "ternary" for the model before splitting; None stops at the small float student.
        split: build the binary model by splitting the ternary one (paper); otherwise binarize the float student directly, with
            one plane, which is the paper's baseline.
        budget: most megabytes (10^6 bytes) for codes and scales of the binary model: only the matrices that gain most per byte
            become ternary and are split later, the others are binary from the start (adaptive splitting); None splits all.
        granularity: which weights of a matrix share a scale (paper: `PerTensor()`).
        scale_dtype: precision of scales on disk and in training (paper: "float32").
        ternary_iterations: 0 sets the ternary threshold by its formula (TWN, paper); 10 fits threshold and scale to the weights
            iteratively, as does the variant that the paper's code calls loss-aware.
        loss_aware: weight each term of that fit by the root of Adam's second moment (Hou and Kwok 2018), as the paper describes
            and its code omits.
        input: input quantization of the layers whose weights are quantized; None keeps inputs in float (paper:
            `QuantizeInput(per="tensor", range="clip")`).
        wide_input: input quantization of the second matrix of each feed-forward block, whose inputs are mostly positive; None
            is `input` (paper: not symmetric).
        learned_lr: peak learning rate of learned clips and steps (paper: 1e-4).
        attention: quantization of the operands of the attention products; None keeps them in float (paper: per tensor, with
            learned clips at 8 bits and learned steps at 4).
        embeddings: quantize the word embeddings too, one scale per row; they are split like the others.
        pooler: quantize the pooler too, or whatever lies between the blocks and the classifier, which stays in float (paper:
            True).
        width: fraction of the heads and feed-forward neurons that the student keeps; the hidden size is unchanged (paper: 0.5).
            A given student is narrowed too, unless its number of heads already differs from the teacher's.
        importance: criterion for these heads and neurons: "gradient", the effect of removal on the loss on the labels (paper,
            as in DynaBERT), or "magnitude" of their weights; always the latter for a given student.
        layers: the teacher's layers that the student keeps: a number, or a list of indices from 0; None keeps all (paper).
        choice: which ones, where `layers` is a number: "skip" (evenly, ending with the last), "paper" (that of XTC), "top" or
            "bottom".
        layer_map: "last" matches the student's last layer with the teacher's last, "paper" with the one it was copied from.
        hidden_weight: weight of the squared error of hidden states, mean over unpadded positions and hidden size, summed over
            layers (paper: 1).
        attention_weight: weight of the squared error of attention scores before the softmax, mean over heads and pairs of
            unpadded positions, summed over layers (paper: 1, padding included). If the student has fewer heads than the
            teacher, their scores cannot be compared: the quantized models then learn from the small float student (paper).
        relation_heads: compare relations within queries, keys and values, regrouped into this many heads, instead of attention
            scores (MiniLMv2); numbers of heads may then differ, and all models learn from the teacher itself. None compares
            scores (paper).
        padded_to: sum both errors over unpadded positions and divide as if sequences were padded to this length (paper: 64 or
            128); short texts then weigh less, scores by the square. None takes the means.
        logit_weight: weight of the soft cross-entropy with the teacher, or the objective's loss of that family, in Stage II
            (paper: 1).
        joint: merge both stages into one, with their total duration and the learning rate of Stage II (paper: no).
        reduction: reduction of the soft cross-entropy: "mean" also divides by the number of classes (paper), "batchmean" does
            not.
        float_epochs, ternary_epochs, binary_epochs: epochs of each model on the way, shared equally by Stage I and Stage II;
            the small float student is trained only if it is smaller than the teacher, or given.
        steps: duration of each stage in optimizer steps instead of epochs.
        float_lr, ternary_lr, binary_lr: peak learning rates of Stage II (paper: 1e-5 ternary, 5e-5 binary).
        feature_lr_scale: learning rate of Stage I, as a multiple of that of Stage II (paper: 2.5).
        batch_size, weight_decay, warmup, clip_norm: AdamW, linear warm-up over that fraction of a stage, then linear decay
            (paper: batches of 16 for CoLA and MRPC, else 32; gradients clipped per tensor).
        bias_correction: bias correction of AdamW; without it early steps are longer (paper: BertAdam, without).
        dropout: dropout of the student in training; None keeps the teacher's.
        validations: evaluations of the delivered form per stage; the next stage starts from the best latent weights, which may
            be the stage's initial ones.
        augment: use the task's augmentation, if it has one.
        variants: also train on variants of the task's texts, generated before the run (Jiao et al. 2020); None omits them.
        general: general distillation of the student on a corpus of plain text first (Jiao et al. 2020; paper); None omits it.
        teacher_epochs, teacher_lr: fine-tuning of a teacher whose classifier is new.
    """

    bits: Bits | None = 1
    split: bool = True
    budget: Positive | None = None
    granularity: Granularity = PerChannel()
    scale_dtype: ScaleDtype = "float16"
    ternary_iterations: WholeNumber = 0
    loss_aware: bool = False
    input: QuantizeInput | None = field(default_factory=QuantizeInput)
    wide_input: QuantizeInput | None = None
    learned_lr: Positive = 1e-4
    attention: QuantizeAttention | None = None
    embeddings: bool = True
    pooler: bool = False
    width: Annotated[float, Range(above=0, most=1)] = 0.5
    importance: Importance = "gradient"
    layers: WholeNumber | tuple[WholeNumber, ...] | None = None
    choice: Choice = "skip"
    layer_map: LayerMap = "last"
    hidden_weight: NonNegative = 1.0
    attention_weight: NonNegative = 1.0
    relation_heads: Count | None = None
    padded_to: Count | None = None
    logit_weight: NonNegative = 1.0
    joint: bool = False
    reduction: Reduction = "mean"
    float_epochs: Epochs = 4
    ternary_epochs: Epochs = 4
    binary_epochs: Epochs = 4
    steps: Count | None = None
    float_lr: Positive = 5e-5
    ternary_lr: Positive = 5e-5
    binary_lr: Positive = 5e-5
    feature_lr_scale: Positive = 2.5
    batch_size: Count = 32
    weight_decay: NonNegative = 0.01
    warmup: FractionBelowOne = 0.1
    clip_norm: Positive | None = 1.0
    bias_correction: bool = True
    dropout: FractionBelowOne | None = 0.0
    validations: Count = 10
    augment: bool = True
    variants: Variants | None = None
    general: GeneralDistillation | None = None
    teacher_epochs: Epochs = 3
    teacher_lr: Positive = 5e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bits not in (1, "ternary", None):
            fix = "Other numbers of bits are XTC's, or those of QuantizedDistillation."
            raise SpecError("bits of 1, 'ternary' or None", given=repr(self.bits), where="BinaryBERT", fix=fix)
        if self.budget is not None and (self.bits != 1 or not self.split):
            given, fix = f"bits={self.bits}, split={self.split}", "A budget limits splitting."
            raise SpecError("bits=1 and split=True with a budget", given=given, where="BinaryBERT budget", fix=fix)
        if not self.logit_weight or not (self.hidden_weight or self.attention_weight):
            given = f"hidden {self.hidden_weight}, attention {self.attention_weight}, logits {self.logit_weight}"
            fix = "The paper sets all three to 1."
            raise SpecError("a weight above 0 for each of the two stages", given=given, where="BinaryBERT", fix=fix)

    @property
    def needs_teacher(self) -> bool:
        """Always: the student is cut from the teacher, and imitates it."""
        return True

    @property
    def makes_student(self) -> bool:
        """Always: part of the teacher, unless a student is given."""
        return True

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """[general distillation ->] [teacher ->] [small float student ->] [ternary ->] binary; the last three have two stages.

        A given student with latent ternary weights, such as `Result.models` of a run with bits="ternary" holds, continues from
        there; its teacher is the float student that it came from ("small" there), or one with as many heads.
        """
        start = self._start(context)
        tuning = FineTuning(self.teacher_epochs, batch_size=self.batch_size, lr=self.teacher_lr)
        chain = start_chain(context, start.source_layers, start.depth, general=self.general, tuning=tuning)
        terms = self._small_float_student(chain, start, context.objective)
        if self.bits == "ternary" or (self.bits == 1 and self.split):
            self._ternary_student(chain, start, terms)
        if self.bits == 1:
            if not self.split:
                chain.act(*self._compress(1, context.models))
            chain.train(*self._run("binary", terms, self.binary_epochs, self.binary_lr))
        nothing = f"bits={self.bits}, ternary_epochs={self.ternary_epochs}"
        return chain.stages("BinaryBERT", nothing, "Set bits, or a width or layers to make the student smaller in float.")

    def _start(self, context: RunContext) -> _Start:
        """Starting point of the chain.

        Raises:
            SpecError: a given student is already ternary, and split is False.
        """
        models = context.models
        depth, source_layers = source_layers_of(self.layers, self.choice, models, "BinaryBERT")
        given = "student" in models
        ternary = given and bool(splittable_layers(models["student"]))
        if ternary and self.bits == 1 and not self.split:
            fix = "Split it: split=True; or give a float student."
            raise SpecError("a float student with split=False", given="a ternary one", where="BinaryBERT", fix=fix)
        narrow = given and _heads(models["student"]) != _heads(models["teacher"])
        return _Start(models, depth, source_layers, given or self.general is not None, ternary, narrow)

    def _small_float_student(self, chain: StageChain, start: _Start, objective: Objective) -> _Parts:
        """Narrow the student, and train it in float if it is smaller than its teacher.

        Returns:
            Terms for its quantized forms: imitation of the teacher, or of the float student where only its scores compare.

        Raises:
            SpecError: its scores are targets, but it is not trained.
        """
        teacher, matched = "teacher", (start.source_layers, start.depth)
        if self.width < 1 and not start.narrow and not start.ternary:
            importance: Importance = "magnitude" if start.trained else self.importance
            chain.act(ReduceWidth("student", 1.0 - self.width, importance=importance))
        chain.act(*set_dropout(self.dropout))
        other_heads = start.narrow or self.width < 1
        own_scores = bool(self.attention_weight) and self.relation_heads is None and not start.ternary and other_heads
        smaller = start.trained or self.width < 1 or len(start.source_layers) < start.depth
        if not start.ternary and smaller and self.float_epochs:
            terms = self._terms(*matched, teacher, objective, attention=not own_scores)
            chain.train(*self._run("float", terms, self.float_epochs, self.float_lr))
        elif own_scores:
            fix = "Train it: float_epochs above 0; or omit the scores: attention_weight=0."
            untrained = "one with other heads, untrained"
            raise SpecError("a small float student whose scores can teach", given=untrained, where="BinaryBERT", fix=fix)
        if own_scores and self.bits is not None:
            chain.act(Copy("student", "small"))
            teacher, matched = "small", (tuple(range(len(start.source_layers))), len(start.source_layers))
        return self._terms(*matched, teacher, objective, attention=True)

    def _ternary_student(self, chain: StageChain, start: _Start, terms: _Parts) -> None:
        """Train the ternary form, then split it into two binary planes."""
        if not start.ternary:
            chain.act(*self._compress("ternary", start.models))
        if self.budget is not None:
            together = tuple(dict.fromkeys(term for part in terms.values() for term in part))
            chain.act(ChooseTernary("student", round(1e6 * self.budget), together, batch_size=self.batch_size))
        if self.ternary_epochs:
            chain.train(*self._run("ternary", terms, self.ternary_epochs, self.ternary_lr))
        if self.bits == 1:
            chain.act(SplitTernary("student", optional=self.budget is not None))

    def _terms(
        self, source_layers: tuple[int, ...], depth: int, teacher: str, objective: Objective, *, attention: bool
    ) -> _Parts:
        """Terms by name of the stage."""
        weight = self.attention_weight if attention else 0.0
        weights, others = (self.hidden_weight, weight), (self.relation_heads, self.padded_to)
        features = feature_terms(source_layers, depth, self.layer_map, *weights, teacher, *others)
        logits = logit_terms(self.logit_weight, objective, self.reduction, teacher)
        if not features:
            fix = "Set hidden_weight above 0."
            given = "attention scores of a different number of heads"
            raise SpecError("something to imitate in Stage I", given=given, where="BinaryBERT", fix=fix)
        return {"": (*features, *logits)} if self.joint else {"I": features, "II": logits}

    def _run(self, name: str, parts: _Parts, epochs: float, lr: float) -> list[Stage]:
        whole = Stage(
            name,
            terms=next(iter(parts.values())),
            data=self.variants or "task",
            epochs=epochs if self.steps is None else None,
            steps=self.steps,
            batch_size=self.batch_size,
            clip_norm=self.clip_norm,
            augment=self.augment,
            validations=self.validations,
            keep="best",
        )
        rates = {"I": lr * self.feature_lr_scale}
        different = {p: {"terms": terms, "optimizer": self._optimizer(rates.get(p, lr))} for p, terms in parts.items()}
        return in_parts(whole, different)

    def _optimizer(self, lr: float) -> AdamW:
        schedule = WarmupLinear(lr, warmup=self.warmup)
        scale = self.learned_lr / lr
        return AdamW(schedule, weight_decay=self.weight_decay, learned_lr_scale=scale, bias_correction=self.bias_correction)

    def _compress(self, bits: Bits, models: Models) -> tuple[Action, ...]:
        weights = Compress("student", self._rules(bits, models))
        return (weights,) if self.attention is None else (weights, CompressAttention("student", self.attention))

    def _rules(self, bits: Bits, models: Models) -> tuple[Compression, ...]:
        student: nn.Module = models.get("student", models["teacher"])
        matrices: Ternary | Binary = Binary(self.granularity, scale_dtype=self.scale_dtype)
        if bits == "ternary":
            matrices = Ternary(
                self.granularity,
                scale_dtype=self.scale_dtype,
                iterations=self.ternary_iterations,
                loss_aware=self.loss_aware,
            )
        rows: Literal[1, "ternary"] | None = None if not self.embeddings else "ternary" if bits == "ternary" else 1
        return encoder_rules(
            student,
            matrices,
            self.input,
            embeddings=rows,
            scale_dtype=self.scale_dtype,
            wide_input=self.wide_input,
            pooler=self.pooler,
        )


@dataclass(frozen=True)
class _Start:
    """Starting point of the chain.

    Args:
        models: models by role.
        depth: number of the teacher's layers.
        source_layers: for each layer of the student, the teacher's layer that it is copied from or matched with.
        trained: the student has its own weights, given or from general distillation.
        ternary: the student is already ternary.
        narrow: its number of heads differs from the teacher's.
    """

    models: Models
    depth: int
    source_layers: tuple[int, ...]
    trained: bool
    ternary: bool
    narrow: bool


def _heads(model: nn.Module) -> set[int]:
    """Numbers of heads of the attention layers, where these are recognised; otherwise the config's number."""
    numbers = {each.heads for each in attention_layers(model)}
    declared = getattr(getattr(model, "config", None), "num_attention_heads", None)
    return numbers or ({declared} if isinstance(declared, int) else set())
