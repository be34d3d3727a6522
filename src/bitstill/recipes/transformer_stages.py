"""What recipes for transformers share: which layers a student keeps, what it imitates, and which weights are quantized."""

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


def kept_layers(
    layers: int | tuple[int, ...] | None, choice: Choice, models: Models, where: str
) -> tuple[int, tuple[int, ...]]:
    """How many blocks the teacher has, and which of them the student's blocks are made of, or matched to.

    Args:
        layers: a number, a list from 0, or None for all (or as many as a given student has).
        choice: which ones, where `layers` is a number.
        models: with a "teacher", and perhaps a "student".
        where: the recipe, for errors.

    Raises:
        SpecError: the teacher has no such layers, or a given student has another number of them.
        MatchError: a model without repeated blocks.
    """
    depth = len(blocks(models["teacher"]))
    if isinstance(layers, tuple):
        check_choice(layers, depth)
        kept = layers
    else:
        kept = choose(depth, depth if layers is None else layers, choice)
    if "student" not in models:
        return depth, kept
    own = len(blocks(models["student"]))
    if layers is not None and own != len(kept):
        fix = "Leave `layers` out, or list the teacher's layer for each of the student's."
        raise SpecError(f"{own} layers, as the student has", given=str(len(kept)), where=f"{where} layers", fix=fix)
    return depth, kept if layers is not None else choose(depth, own, "skip")


def make_student(kept: tuple[int, ...], depth: int) -> Action:
    """The action that makes the student of the teacher, or of some of its layers.

    Args:
        kept: which of the teacher's layers.
        depth: how many it has.
    """
    return Copy("teacher", "student") if len(kept) == depth else ReduceLayers("teacher", "student", kept)


def set_dropout(dropout: float | None) -> tuple[Action, ...]:
    """Dropout of the student while it learns; None leaves it as it is."""
    return () if dropout is None else (SetDropout("student", dropout),)


class StageChain:
    """The stages of a recipe as they are planned, one after the other.

    An action belongs to the stage that trains next; those for which no such stage follows end with one that trains nothing.
    """

    def __init__(self) -> None:
        self._stages: list[Stage] = []
        self._pending: tuple[Action, ...] = ()

    def act(self, *actions: Action) -> None:
        """Apply `actions` when the next stage begins."""
        self._pending += actions

    def train(self, *stages: Stage) -> None:
        """Append `stages`; the first begins with the actions that wait."""
        first, *others = stages
        self._stages += [replace(first, begin=(*self._pending, *first.begin)), *others]
        self._pending = ()

    def stages(self, where: str, given: str, fix: str) -> tuple[Stage, ...]:
        """All stages.

        Raises:
            SpecError: none of them trains the student; `given` and `fix` say why and what to do.
        """
        if not any("student" in stage.train for stage in self._stages):
            raise SpecError("something to do with the student", given=given, where=where, fix=fix)
        last = (Stage("last actions", begin=self._pending),) if self._pending else ()
        return (*self._stages, *last)


def start_chain(
    context: RunContext,
    kept: tuple[int, ...],
    depth: int,
    *,
    general: GeneralDistillation | None,
    tuning: FineTuning,
) -> StageChain:
    """The first boxes of BinaryBERT and XTC: [general distillation ->] [the teacher's fine-tuning ->] a student.

    Args:
        context: models and objective.
        kept, depth: which of the teacher's so many layers the student is made of.
        general: how the student learns from a corpus before it meets the task, while its teacher has not met it either.
        tuning: of a teacher whose classifier is new.

    Raises:
        SpecError: general distillation of a student that is given, or without a corpus.
    """
    chain, given = StageChain(), "student" in context.models
    if general is not None:
        if given:
            fix = "Leave it out; `bitstill distill` makes such a student for other uses."
            raise SpecError("a student made of the teacher", given="one that is given", where="general distillation", fix=fix)
        chain.act(make_student(kept, depth), *set_dropout(general.dropout))
        chain.train(general.stage(kept, depth))
    if "teacher" in context.untrained:
        chain.train(tuning.stage("teacher", context.objective))
    if general is None and not given:
        chain.act(make_student(kept, depth))
    return chain


def hidden_width(model: nn.Module) -> int | None:
    """Width of a transformer's hidden states, as its config says; None where it has none."""
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    return width if isinstance(width, int) else None


def in_parts(whole: Stage, parts: Mapping[str, Mapping[str, Any]]) -> list[Stage]:
    """A stage cut into parts that follow each other and share its epochs equally; each takes all of its steps, if it has steps.

    Args:
        whole: what the parts have in common; what it begins with happens before the first.
        parts: what is different in each, by what is added to the stage's name.
    """
    epochs = None if whole.epochs is None else whole.epochs / len(parts)
    begins = [whole.begin, *[()] * (len(parts) - 1)]
    return [
        replace(whole, name=f"{whole.name} {part}".strip(), epochs=epochs, begin=begin, **different)
        for (part, different), begin in zip(parts.items(), begins, strict=True)
    ]


def logit_terms(weight: float, objective: Objective, reduction: Reduction, teacher: str = "teacher") -> tuple[Term, ...]:
    """Soft cross-entropy with the teacher's logits, or the objective's loss of that family; a weight of 0 leaves it out."""
    if not weight:
        return ()
    return (Term(objective.imitation_loss("cross-entropy", reduction=reduction), teacher=teacher, weight=weight),)


def feature_terms(
    kept: tuple[int, ...],
    depth: int,
    layer_map: LayerMap,
    hidden: float,
    attention: float,
    teacher: str = "teacher",
    relation_heads: int | None = None,
) -> tuple[Term, ...]:
    """Hidden states and attention, with their weights; a weight of 0 leaves a term out.

    Attention is its scores, or with `relation_heads` relations within queries, keys and values.
    """
    scores: Loss = AttentionScoreMSE(score_pairs(kept))
    relations: Loss | None = None if relation_heads is None else AttentionRelation(head_pairs(kept), relation_heads)
    losses: tuple[tuple[Loss, float], ...] = (
        (FeatureMSE(hidden_pairs(kept, depth, layer_map)), hidden),
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
    """Matrices inside the blocks, word embeddings with a scale per row, and the pooler on demand; the rest stays in float.

    Args:
        model: read for the names of its blocks, of its word embeddings and of its pooler.
        matrices: of the blocks and the pooler.
        input: of those matrices.
        embeddings: bits of the word embeddings; None leaves them in float.
        scale_dtype: of their scales.
        wide_input: of the second matrix of each feed-forward part; None is `input`.
        pooler: whether what is between the blocks and the classifier is compressed too.

    Raises:
        MatchError: there is no such part.
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
    """Names of the linear layers behind the blocks, all but the last, which is the classifier.

    Raises:
        MatchError: there is none.
    """
    inside, modules = f"{blocks(model).name}.", dict(model.named_modules())
    behind = list(modules)[max(place for place, name in enumerate(modules) if name.startswith(inside)) + 1 :]
    *found, last = [name for name in behind if isinstance(modules[name], nn.Linear)] or [""]
    words = word_embeddings(model)
    table = None if words is None else getattr(modules[words], "weight", None)
    if not found or any(modules[name].weight is table for name in (*found, last)):
        given, fix = last or "nothing", "Leave pooler out."
        raise MatchError("a layer between blocks and classifier", given=given, where=f"pooler, {type(model).__name__}", fix=fix)
    return tuple(found)


def _second_matrices(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that lead back from a feed-forward part's neurons: in each block, the one with the widest input.

    Raises:
        MatchError: no layer of the blocks has more inputs than outputs.
    """
    found = blocks(model)
    names = []
    for index, block in enumerate(found.modules):
        linear = {name: layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear)}
        narrowing = {name: layer for name, layer in linear.items() if layer.in_features > layer.out_features}
        if narrowing:
            widest = max(narrowing, key=lambda name: narrowing[name].in_features)
            names.append(f"{found.name}.{index}.{widest}")
    if not names:
        fix = "Leave wide_input out."
        raise MatchError("feed-forward parts", given="none", where=f"wide_input, {type(model).__name__}", fix=fix)
    return tuple(names)
