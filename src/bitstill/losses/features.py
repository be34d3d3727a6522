"""Losses on intermediate outputs: pure functions, and frozen dataclasses around them.

Like the losses on logits (`losses.logits`), each is called as `loss(student, target, labels, progress)` and returns a scalar
whose reduction is part of its definition. Layers are given as pairs of names; `layer_maps` builds these for transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from bitstill.constraints import Count, check_fields
from bitstill.errors import DataError
from bitstill.losses.taps import Output


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of normalised activation maps (Zagoruyko and Komodakis 2017, eq. 2, p = 2).

    The map of (batch, channels, ...) is the sum of squares over channels, flattened and divided by its L2 norm, so student
    and teacher may differ in width. Mean over the batch.

    Raises:
        DataError: the maps differ in size, or the outputs have no positions.
    """
    if min(student.ndim, teacher.ndim) < 3:
        raise DataError(
            "feature maps (batch, channels, positions ...)",
            given=f"{tuple(student.shape)} and {tuple(teacher.shape)}",
            where="AttentionTransfer",
            fix="Pair convolutional layers; for layers without positions use FeatureMSE.",
        )
    maps = [F.normalize(x.float().square().sum(1).flatten(1), dim=1) for x in (student, teacher)]
    if maps[0].shape != maps[1].shape:
        raise DataError(
            "feature maps of equal size",
            given=f"{tuple(student.shape)} and {tuple(teacher.shape)}",
            where="AttentionTransfer",
            fix="Pair layers whose outputs have the same height and width.",
        )
    return (maps[0] - maps[1]).square().sum(1).mean()


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor | None, count: int | None = None) -> Tensor:
    """Mean of squared differences over the elements that `mask` keeps; no gradient to `teacher`.

    Args:
        student, teacher: tensors of equal shape.
        mask: bool, broadcastable to that shape; None keeps all.
        count: number of elements to divide by; None is that of the elements kept.
    """
    if mask is None:
        mean = F.mse_loss(student.float(), teacher.float())
        return mean if count is None else mean * (student.numel() / count)
    value: Tensor = _MaskedMSE.apply(student.float(), teacher.float(), mask, count)  # type: ignore[no-untyped-call]
    return value


class _MaskedMSE(Function):
    """Masked mean squared error in few passes over memory: its tensors are the largest of a step after the weights."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor, count: int | None) -> Tensor:
        # Filled with zeros after the subtraction: values at padding may be infinite, and infinity times zero is NaN.
        difference = (student - teacher).masked_fill_(~mask, 0.0)
        ctx.save_for_backward(difference)
        # The mask is broadcast.
        ctx.count = mask.sum() * (difference.numel() // mask.numel()) if count is None else count
        flat = difference.flatten()
        value: Tensor = torch.dot(flat, flat) / ctx.count
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2.0 * grads[0] / ctx.count), None, None, None


def attention_relations(x: Tensor, relation_heads: int, real: Tensor | None) -> Tensor:
    """Log softmax of x x^T / sqrt(width) within each relation head (Wang et al. 2021, MiniLMv2, eqs. 3 to 6).

    Args:
        x: queries, keys or values (batch, heads, positions, head size), whose heads are concatenated and split anew.
        relation_heads: number of relation heads, independent of the number of heads.
        real: bool (batch, positions), False at padding, which is masked; None without padding.

    Returns:
        (batch, relation heads, positions, positions).

    Raises:
        DataError: the total width is not a multiple of the number of relation heads.
    """
    flat = x.float().transpose(1, 2).flatten(2)
    if flat.shape[-1] % relation_heads:
        fix = "Choose a number that divides both models' widths."
        given = f"heads of total width {flat.shape[-1]}"
        raise DataError(
            f"a width divisible by {relation_heads} relation heads", given=given, where="AttentionRelation", fix=fix
        )
    heads = flat.unflatten(-1, (relation_heads, -1)).transpose(1, 2)
    products = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    if real is not None:
        products = products.masked_fill(~real[:, None, None, :], torch.finfo(products.dtype).min)
    return F.log_softmax(products, -1)


@dataclass(frozen=True)
class Pair:
    """A module of the student and the matching module of the teacher, by dotted name."""

    student: str
    teacher: str


@dataclass(frozen=True)
class AttentionTransfer:
    """`attention_transfer` summed over pairs of layers; widths may differ."""

    pairs: tuple[Pair, ...]
    needs_teacher = True

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        losses = [attention_transfer(student.features[p.student], target.features[p.teacher]) for p in self.pairs]
        return torch.stack(losses).sum()

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the student's and the teacher's modules."""
        return tuple(pair.student for pair in self.pairs), tuple(pair.teacher for pair in self.pairs)


@dataclass(frozen=True)
class FeatureMSE:
    """`masked_mse` of layer outputs of equal shape, summed over pairs; padding is excluded from the mean.

    Args:
        pairs: layers of student and teacher.
        padded_to: divide the sum over unpadded positions by this length instead of by their number, as a mean over sequences
            padded to it does (code of BinaryBERT and XTC, which also compares the features at padding). None takes the mean.
    """

    pairs: tuple[Pair, ...]
    padded_to: Count | None = None
    needs_teacher = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        losses = []
        for pair in self.pairs:
            student_output, teacher_output = _matched(
                pair,
                student,
                target,
                "FeatureMSE",
                "Pair layers of equal width, or use AttentionTransfer, which allows different widths.",
            )
            real = student.positions
            fits = real is not None and student_output.ndim == 3 and student_output.shape[:2] == real.shape
            count = None
            if self.padded_to is not None and student_output.ndim == 3:
                batch, positions, width = student_output.shape
                count = batch * _padded(self.padded_to, positions, "FeatureMSE") * width
            mask = real.unsqueeze(-1) if real is not None and fits else None
            losses.append(masked_mse(student_output, teacher_output, mask, count))
        return torch.stack(losses).sum()

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the student's and the teacher's modules."""
        return tuple(pair.student for pair in self.pairs), tuple(pair.teacher for pair in self.pairs)


@dataclass(frozen=True)
class AttentionScoreMSE:
    """`masked_mse` of attention scores before the softmax (batch, heads, queries, keys), summed over pairs.

    Queries and keys at padding are excluded from the mean. (The code of Wu et al. 2022 includes them, with the mask.)

    Args:
        pairs: attention layers of student and teacher.
        padded_to: divide the sum over unpadded pairs by the square of this length instead of by their number, as a mean over
            sequences padded to it does whose masked scores are set to zero (code of BinaryBERT, lengths 64 and 128; it also
            compares the rows of padded queries). Sequences of n of L positions then weigh n^2 / L^2. None takes the mean.
    """

    pairs: tuple[Pair, ...]
    padded_to: Count | None = None
    needs_teacher = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        losses = []
        real = student.positions
        mask = None if real is None else (real.unsqueeze(1) & real.unsqueeze(2)).unsqueeze(1)
        for pair in self.pairs:
            student_scores, teacher_scores = _matched(
                pair, student, target, "AttentionScoreMSE", "Pair layers with equally many heads."
            )
            count = None
            if self.padded_to is not None:
                batch, heads, positions, _ = student_scores.shape
                count = batch * heads * _padded(self.padded_to, positions, "AttentionScoreMSE") ** 2
            losses.append(masked_mse(student_scores, teacher_scores, mask, count))
        return torch.stack(losses).sum()

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The attention layers on either side."""
        return tuple(pair.student for pair in self.pairs), tuple(pair.teacher for pair in self.pairs)


@dataclass(frozen=True)
class AttentionRelation:
    """KL divergence of query-query, key-key and value-value relations (Wang et al. 2021, MiniLMv2, eq. 2).

    The two models may differ in heads and in width. Mean over the batch, relation heads and unpadded positions; summed over
    the three relations and over pairs.

    Args:
        pairs: attention layers, by `layer_maps.head_pairs`.
        relation_heads: number of relation heads.
    """

    pairs: tuple[Pair, ...]
    relation_heads: Count = 12
    needs_teacher = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        assert target is not None
        real, losses = student.positions, []
        for pair in self.pairs:
            for student_heads, teacher_heads in zip(student.features[pair.student], target.features[pair.teacher], strict=True):
                student_relations, teacher_relations = (
                    attention_relations(x, self.relation_heads, real) for x in (student_heads, teacher_heads)
                )
                divergence = (teacher_relations.exp() * (teacher_relations - student_relations)).sum(-1)
                losses.append(divergence.mean() if real is None else _mean_over(divergence, real))
        return torch.stack(losses).sum()

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The attention layers on either side."""
        return tuple(pair.student for pair in self.pairs), tuple(pair.teacher for pair in self.pairs)


def _mean_over(values: Tensor, real: Tensor) -> Tensor:
    """Mean of (batch, heads, positions) over unpadded positions."""
    return values.masked_fill(~real.unsqueeze(1), 0.0).sum() / (real.sum() * values.shape[1])


def _padded(length: int, positions: int, loss: str) -> int:
    """The length to which sequences count as padded.

    Raises:
        DataError: they are longer than that.
    """
    if positions > length:
        fix = "Set padded_to to the task's longest sequence, or cut its texts."
        raise DataError(f"sequences of at most {length} positions", given=str(positions), where=f"padded_to of {loss}", fix=fix)
    return length


def _matched(pair: Pair, student: Output, target: Output, loss: str, fix: str) -> tuple[Tensor, Tensor]:
    student_output, teacher_output = student.features[pair.student], target.features[pair.teacher]
    if student_output.shape != teacher_output.shape:
        given = f"{tuple(student_output.shape)} and {tuple(teacher_output.shape)}"
        raise DataError("outputs of equal shape", given=given, where=f"{loss} {pair.student} -> {pair.teacher}", fix=fix)
    return student_output, teacher_output
