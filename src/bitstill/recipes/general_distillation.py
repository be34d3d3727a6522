"""General distillation (Jiao et al. 2020, TinyBERT; EMNLP findings, arXiv 1909.10351): a smaller encoder for any task.

The student imitates hidden states (the output of the embeddings included) and attention scores of a teacher that was not
fine-tuned, on a large corpus of plain text. No tokens are masked by default, as the authors later found best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitstill.constraints import Count, Epochs, FractionBelowOne, NonNegative, Positive, WholeNumber, check_fields
from bitstill.data.corpus import Corpus
from bitstill.errors import SpecError
from bitstill.losses.layer_maps import LayerMap
from bitstill.model.blocks import Choice
from bitstill.recipes.recipe import Models, RunContext
from bitstill.recipes.transformer_stages import (
    feature_terms,
    hidden_width,
    make_student,
    set_dropout,
    source_layers_of,
)
from bitstill.schedules import WarmupLinear
from bitstill.train.actions import AddProjection
from bitstill.train.optim import AdamW
from bitstill.train.stage import Stage


@dataclass(frozen=True)
class GeneralDistillation:
    """Settings of general distillation.

    Args:
        corpus: plain text; None leaves it to the caller to set.
        layers: the teacher's layers that the student keeps: a number, or a list of indices from 0; None keeps all.
        choice: which ones, where `layers` is a number: "skip" (paper), "top" or "bottom".
        layer_map: "last" matches the student's last layer with the teacher's last, "paper" (XTC's) with the one it was copied
            from.
        hidden_weight, attention_weight: weights of the squared errors of hidden states and attention scores (paper: 1). If
            student and teacher differ in their number of heads, scores cannot be compared: set attention_weight=0.
        epochs, batch_size, lr, weight_decay, warmup, clip_norm: AdamW, linear warm-up over that fraction, then linear decay
            (paper: 3 epochs, batch 256, lr 5e-5).
        steps: duration in optimizer steps instead of epochs.
        dropout: dropout of the student in training; None keeps the teacher's.
        validations: number of comparisons of student and teacher on held-out text.
    """

    corpus: Corpus | None = None
    layers: WholeNumber | tuple[WholeNumber, ...] | None = None
    choice: Choice = "skip"
    layer_map: LayerMap = "last"
    hidden_weight: NonNegative = 1.0
    attention_weight: NonNegative = 1.0
    epochs: Epochs = 3
    steps: Count | None = None
    batch_size: Count = 32
    lr: Positive = 1e-4
    weight_decay: NonNegative = 0.01
    warmup: FractionBelowOne = 0.1
    clip_norm: Positive | None = 1.0
    dropout: FractionBelowOne | None = 0.0
    validations: Count = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.hidden_weight or self.attention_weight):
            given = f"hidden {self.hidden_weight}, attention {self.attention_weight}"
            fix = "The paper sets both to 1."
            raise SpecError("hidden states or attention to imitate", given=given, where="GeneralDistillation", fix=fix)

    @property
    def needs_teacher(self) -> bool:
        """Always: the student imitates it."""
        return True

    @property
    def makes_student(self) -> bool:
        """Always: from layers of the teacher, unless a student is given."""
        return True

    def stages(self, context: RunContext) -> tuple[Stage, ...]:
        """One stage.

        Raises:
            SpecError: the student would be as large as the teacher, or there is no corpus.
        """
        models = context.models
        depth, source_layers = source_layers_of(self.layers, self.choice, models, "GeneralDistillation")
        if "student" not in models and len(source_layers) == depth:
            fix = "Set layers, or give a student."
            raise SpecError("a smaller student", given="all of the teacher", where="GeneralDistillation", fix=fix)
        student = () if "student" in models else (make_student(source_layers, depth),)
        stage = self.stage(source_layers, depth, self._projection(models))
        return (replace(stage, begin=(*student, *set_dropout(self.dropout), *stage.begin)),)

    def stage(self, source_layers: tuple[int, ...], depth: int, projection: AddProjection | None = None) -> Stage:
        """The stage, for an existing student.

        Args:
            source_layers: for each layer of the student, the teacher's layer that it is matched with.
            depth: number of the teacher's layers.
            projection: projection of the student's hidden states to the teacher's hidden size, where they differ.

        Raises:
            SpecError: there is no corpus.
        """
        if self.corpus is None:
            fix = "Name plain text: --corpus, or corpus=Corpus(...)."
            raise SpecError("a corpus", given="none", where="GeneralDistillation", fix=fix)
        terms = feature_terms(source_layers, depth, self.layer_map, self.hidden_weight, self.attention_weight)
        if projection is not None:
            terms = tuple(replace(term, through=projection.name) for term in terms)
        return Stage(
            "general distillation",
            train=("student",) if projection is None else ("student", projection.name),
            terms=terms,
            data=self.corpus,
            epochs=self.epochs if self.steps is None else None,
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=AdamW(WarmupLinear(self.lr, warmup=self.warmup), weight_decay=self.weight_decay),
            clip_norm=self.clip_norm,
            validations=self.validations,
            begin=() if projection is None else (projection,),
        )

    def _projection(self, models: Models) -> AddProjection | None:
        if "student" not in models:
            return None
        student, teacher = hidden_width(models["student"]), hidden_width(models["teacher"])
        if student is None or teacher is None or student == teacher:
            return None
        return AddProjection("projection", student, teacher)
