"""Shared parts of transformer recipes: choice of the student's layers, terms of imitation, and rules for quantized weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from bitstill.data.objective import Objective
from bitstill.errors import MatchError, SpecError
from bitstill.losses.features import AttentionRelation, AttentionScoreMSE, FeatureMSE
from bitstill.losses.layer_maps import LayerMap, head_pairs, hidden_pairs, score_pairs
from bitstill.losses.logits import Reduction
from bitstill.losses.loss import Loss
from bitstill.model.blocks import Choice, blocks, check_choice, choose
from bitstill.model.select import word_embeddings
from bitstill.quant.granularity import PerChannel
from bitstill.quant.rules import Bits, Compression, QuantizeInput, Quantizer, ScaleDtype, quantizer
from bitstill.recipes.recipe import Models, RunContext
from bitstill.train.actions import Copy, ReduceLayers, SetDropout
from bitstill.train.stage import Action, Stage, Term

if TYPE_CHECKING:
    from bitstill.recipes.fine_tuning import FineTuning
    from bitstill.recipes.general_distillation import GeneralDistillation


def source_layers_of(
    layers: int | tuple[int, ...] | None, choice: Choice, models: Models, where: str
) -> tuple[int, tuple[int, ...]]:
    """Number of the teacher's blocks, and for each block of the student the one it is copied from or matched with.

    Args:
        layers: a number, a list of indices from 0, or None for all (or as many as a given student has).
        choice: which ones, where `layers` is a number.
        models: models by role, with a "teacher" and perhaps a "student".
        where: the recipe, for errors.

    Raises:
        SpecError: the teacher has no such layers, or a given student has a different number.
        MatchError: a model without repeated blocks.
    """
    depth = len(blocks(models["teacher"]))
    if isinstance(layers, tuple):
        check_choice(layers, depth)
        source_layers = layers
    else:
        source_layers = choose(depth, depth if layers is None else layers, choice)
    if "student" not in models:
        return depth, source_layers
    own = len(blocks(models["student"]))
    if layers is not None and own != len(source_layers):
        fix = "Leave `layers` out, or list the teacher's layer for each of the student's."
        raise SpecError(f"{own} layers, as the student has", given=str(len(source_layers)), where=f"{where} layers", fix=fix)
    return depth, source_layers if layers is not None else choose(depth, own, "skip")


def make_student(source_layers: tuple[int, ...], depth: int) -> Action:
    """Action that builds the student from the teacher, or from some of its layers.

    Args:
        source_layers: indices of the teacher's layers.
        depth: number of the teacher's layers.
    """
    return Copy("teacher", "student") if len(source_layers) == depth else ReduceLayers("teacher", "student", source_layers)


def set_dropout(dropout: float | None) -> tuple[Action, ...]:
    """Action that sets the dropout of the student in training; None leaves it unchanged."""
    return () if dropout is None else (SetDropout("student", dropout),)


class StageChain:
    """Builder of a recipe's stages, in order.

    An action belongs to the next stage that trains; actions after the last one go into a final stage without training.
    """

    def __init__(self) -> None:
        self._stages: list[Stage] = []
        self._pending: tuple[Action, ...] = ()

    def act(self, *actions: Action) -> None:
        """Apply `actions` when the next stage begins."""
        self._pending += actions

    def train(self, *stages: Stage) -> None:
        """Append `stages`; the first begins with the pending actions."""
        first, *others = stages
        self._stages += [replace(first, begin=(*self._pending, *first.begin)), *others]
        self._pending = ()

    def stages(self, where: str, given: str, fix: str) -> tuple[Stage, ...]:
        """All stages.

        Raises:
            SpecError: none of them trains the student; `given` and `fix` go into its message.
        """
        if not any("student" in stage.train for stage in self._stages):
            raise SpecError("a stage that trains the student", given=given, where=where, fix=fix)
        last = (Stage("last actions", begin=self._pending),) if self._pending else ()
        return (*self._stages, *last)


def start_chain(
    context: RunContext,
    source_layers: tuple[int, ...],
    depth: int,
    *,
    general: GeneralDistillation | None,
    tuning: FineTuning,
) -> StageChain:
    """First boxes of BinaryBERT and XTC: [general distillation ->] [fine-tuning of the teacher ->] a student.

    Args:
        context: models and objective.
        source_layers: indices of the teacher's layers from which the student is built.
        depth: number of the teacher's layers.
        general: general distillation of the student, before the teacher is fine-tuned; None omits it.
        tuning: fine-tuning of a teacher whose classifier is new.

    Raises:
        SpecError: general distillation of a student that is given, or without a corpus.
    """
    chain, given = StageChain(), "student" in context.models
    if general is not None:
        if given:
            fix = "Leave it out, or distil the student with `bitstill distill`."
            raise SpecError(
                "no student, since one is built from the teacher", given="one", where="general distillation", fix=fix
            )
        chain.act(make_student(source_layers, depth), *set_dropout(general.dropout))
        chain.train(general.stage(source_layers, depth))
    if "teacher" in context.untrained:
        chain.train(tuning.stage("teacher", context.objective))
    if general is None and not given:
        chain.act(make_student(source_layers, depth))
    return chain


def hidden_width(model: nn.Module) -> int | None:
    """Hidden size of a transformer, from its config; None where that has none."""
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    return width if isinstance(width, int) else None


def in_parts(whole: Stage, parts: Mapping[str, Mapping[str, Any]]) -> list[Stage]:
    """Cut a stage into consecutive parts that share its epochs equally; a duration in steps applies to each part.

    Args:
        whole: the common stage; its actions belong to the first part.
        parts: fields that differ in each part, by the suffix of its name.
    """
    epochs = None if whole.epochs is None else whole.epochs / len(parts)
    begins = [whole.begin, *[()] * (len(parts) - 1)]
    return [
        replace(whole, name=f"{whole.name} {part}".strip(), epochs=epochs, begin=begin, **different)
        for (part, different), begin in zip(parts.items(), begins, strict=True)
    ]


def logit_terms(weight: float, objective: Objective, reduction: Reduction, teacher: str = "teacher") -> tuple[Term, ...]:
    """Soft cross-entropy with the teacher's logits, or the objective's loss of that family; a weight of 0 omits it."""
    if not weight:
        return ()
    return (Term(objective.imitation_loss("cross-entropy", reduction=reduction), teacher=teacher, weight=weight),)


def feature_terms(
    source_layers: tuple[int, ...],
    depth: int,
    layer_map: LayerMap,
    hidden: float,
    attention: float,
    teacher: str = "teacher",
    relation_heads: int | None = None,
    padded_to: int | None = None,
) -> tuple[Term, ...]:
    """Terms for hidden states and attention, with their weights; a weight of 0 omits a term.

    The attention term compares scores, or with `relation_heads` relations within queries, keys and values. `padded_to` is that
    of `FeatureMSE` and `AttentionScoreMSE`.
    """
    scores: Loss = AttentionScoreMSE(score_pairs(source_layers), padded_to)
    relations: Loss | None = None if relation_heads is None else AttentionRelation(head_pairs(source_layers), relation_heads)
    losses: tuple[tuple[Loss, float], ...] = (
        (FeatureMSE(hidden_pairs(source_layers, depth, layer_map), padded_to), hidden),
        (relations or scores, attention),
    )
    return tuple(Term(loss, teacher=teacher, weight=weight) for loss, weight in losses if weight)


def encoder_rules(
    model: nn.Module,
    matrices: Quantizer,
    input: QuantizeInput | None,
    *,
    embeddings: Bits | None,
    scale_dtype: ScaleDtype,
    wide_input: QuantizeInput | None = None,
    pooler: bool = False,
) -> tuple[Compression, ...]:
    """Rules for matrices inside the blocks, word embeddings with a scale per row, and optionally the pooler.

    Args:
        model: model whose blocks, word embeddings and pooler are looked up by name.
        matrices: quantizer of matrices in the blocks and the pooler.
        input: input quantization of those matrices.
        embeddings: bits of the word embeddings; None leaves them in float.
        scale_dtype: dtype of the embeddings' scales.
        wide_input: input quantization of the second matrix of each feed-forward block; None is `input`.
        pooler: also compress the layers between the blocks and the classifier.

    Raises:
        MatchError: the model has no such part.
    """
    every = (f"{blocks(model).name}.*", *(_pooler(model) if pooler else ()))
    rules: list[Compression] = []
    if wide_input is None or wide_input == input:
        rules.append(Compression(weight=matrices, targets=every, input=input))
    else:
        wide = _second_matrices(model)
        rules.append(Compression(weight=matrices, targets=every, ignore=wide, input=input))
        rules.append(Compression(weight=matrices, targets=wide, input=wide_input))
    table = word_embeddings(model)
    if embeddings is not None and table is not None:
        rows = quantizer(embeddings, PerChannel(), scale_dtype=scale_dtype)
        rules.append(Compression(weight=rows, targets=(table,)))
    return tuple(rules)


def _pooler(model: nn.Module) -> tuple[str, ...]:
    """Names of the linear layers between the blocks and the last one, the classifier.

    Raises:
        MatchError: there is none.
    """
    inside, modules = f"{blocks(model).name}.", dict(model.named_modules())
    behind = list(modules)[max(place for place, name in enumerate(modules) if name.startswith(inside)) + 1 :]
    *inner, last = [name for name in behind if isinstance(modules[name], nn.Linear)] or [""]
    words = word_embeddings(model)
    table = None if words is None else getattr(modules[words], "weight", None)
    if not inner or any(modules[name].weight is table for name in (*inner, last)):
        given, fix = last or "nothing", "Leave pooler out."
        raise MatchError("a layer between blocks and classifier", given=given, where=f"pooler, {type(model).__name__}", fix=fix)
    return tuple(inner)


def _second_matrices(model: nn.Module) -> tuple[str, ...]:
    """Names of the second layers of the feed-forward blocks: in each block, the narrowing layer with the widest input.

    Raises:
        MatchError: no layer in the blocks has more inputs than outputs.
    """
    repeated = blocks(model)
    names = []
    for index, block in enumerate(repeated.modules):
        linear = {name: layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear)}
        narrowing = {name: layer for name, layer in linear.items() if layer.in_features > layer.out_features}
        if narrowing:
            widest = max(narrowing, key=lambda name: narrowing[name].in_features)
            names.append(f"{repeated.name}.{index}.{widest}")
    if not names:
        fix = "Leave wide_input out."
        raise MatchError("feed-forward blocks", given="none", where=f"wide_input, {type(model).__name__}", fix=fix)
    return tuple(names)
