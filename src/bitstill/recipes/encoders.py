"""What recipes for transformers share: which layers a student keeps, what it imitates, and which weights are quantized."""

from __future__ import annotations

from typing import Literal

from torch import nn

from bitstill.distill.features import AttentionRelation, AttentionScoreMSE, FeatureMSE
from bitstill.distill.layer_maps import LayerMap, head_pairs, hidden_pairs, score_pairs
from bitstill.distill.losses import Loss, MeanSquaredError, Reduction, SoftCrossEntropy
from bitstill.errors import SpecError
from bitstill.granularity import PerChannel
from bitstill.recipes.protocol import Models
from bitstill.specs import Compression, QuantizeInput, Quantizer, ScaleDtype, quantizer
from bitstill.surgery.blocks import Choice, blocks, check_choice, choose
from bitstill.surgery.select import word_embeddings
from bitstill.train.stage import Term

Bits = int | Literal["ternary"]


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


def logit_terms(weight: float, regression: bool, reduction: Reduction, teacher: str = "teacher") -> tuple[Term, ...]:
    """The teacher's logits: soft cross-entropy, or squared error, since over one output the former is constant."""
    imitate: Loss = MeanSquaredError() if regression else SoftCrossEntropy(reduction)
    return (Term(imitate, teacher=teacher, weight=weight),) if weight else ()


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
) -> tuple[Compression, ...]:
    """Matrices inside the blocks, and word embeddings with a scale per row; everything else stays in float.

    Args:
        model: read for the names of its blocks and of its word embeddings.
        matrices: of the blocks.
        input: of the blocks' matrices.
        embeddings: bits of the word embeddings; None leaves them in float.
        scale_dtype: of their scales.
    """
    inside = Compression(weight=matrices, targets=(f"{blocks(model).name}.*",), input=input)
    table = word_embeddings(model)
    if embeddings is None or table is None:
        return (inside,)
    return (inside, Compression(weight=quantizer(embeddings, PerChannel(), scale_dtype=scale_dtype), targets=(table,)))
