"""Metrics of whole splits, in percent; larger is better.

Classification metrics take logits (samples, classes), regression metrics outputs (samples,) or (samples, 1); labels are
(samples,).
"""

from __future__ import annotations

import math

from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percentage of samples whose largest logit is the label's."""
    return 100.0 * int((logits.argmax(-1) == labels).sum()) / len(labels)


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Confusion matrix, true classes in rows and predicted ones in columns: int64 (classes, classes).

    Args:
        predicted, labels: int64 (samples,).
        classes: how many there are.
    """
    counts: Tensor = (labels * classes + predicted).bincount(minlength=classes * classes).reshape(classes, classes)
    return counts


def class_counts(predicted: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Correct predictions, predictions, and samples per class; each int64 (classes,).

    Args:
        predicted, labels: int64 (samples,).
        classes: how many there are.
    """
    hits, guesses, truths = (each.bincount(minlength=classes) for each in (labels[predicted == labels], predicted, labels))
    return hits, guesses, truths


def precision_recall_f1(hits: Tensor, predicted: Tensor, actual: Tensor) -> list[tuple[float, float, float]]:
    """Precision, recall and F1 of each class, in percent; 0 where undefined.

    Args:
        hits, predicted, actual: int64 (classes,), numbers of correct predictions, predictions and samples of the class.
    """
    counts = zip(hits.tolist(), predicted.tolist(), actual.tolist(), strict=True)
    return [(_percent(hit, guess), _percent(hit, true), _percent(2 * hit, guess + true)) for hit, guess, true in counts]


def macro_f1(logits: Tensor, labels: Tensor, *, classes: int) -> float:
    """Mean F1 of the classes that occur among predictions or labels."""
    hits, guesses, truths = class_counts(logits.argmax(-1), labels, classes)
    scores = precision_recall_f1(hits, guesses, truths)
    occurring = (guesses + truths).tolist()
    values = [score for (_, _, score), count in zip(scores, occurring, strict=True) if count]
    return sum(values) / len(values)


def matthews(logits: Tensor, labels: Tensor) -> float:
    """100 times Matthews' correlation of two classes (Matthews 1975); 0 where undefined."""
    predicted, actual = logits.argmax(-1) == 1, labels == 1
    tp, tn = int((predicted & actual).sum()), int((~predicted & ~actual).sum())
    fp, fn = int((predicted & ~actual).sum()), int((~predicted & actual).sum())
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return 100.0 * (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def f1(logits: Tensor, labels: Tensor) -> float:
    """100 times the F1 score of class 1; 0 where neither prediction nor label has it."""
    predicted, actual = logits.argmax(-1) == 1, labels == 1
    both, either = int((predicted & actual).sum()), int(predicted.sum()) + int(actual.sum())
    return 200.0 * both / either if either else 0.0


def accuracy_and_f1(logits: Tensor, labels: Tensor) -> float:
    """Mean of accuracy and F1, the official metric of MRPC and QQP in GLUE."""
    return (accuracy(logits, labels) + f1(logits, labels)) / 2


def pearson(logits: Tensor, labels: Tensor) -> float:
    """100 times Pearson's correlation; 0 where one side is constant."""
    x, y = logits.double().flatten(), labels.double()
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return 100.0 * float(x @ y) / scale if scale else 0.0


def spearman(logits: Tensor, labels: Tensor) -> float:
    """100 times Spearman's correlation: Pearson's of the ranks, with mean ranks for ties."""
    return pearson(_ranks(logits.flatten()), _ranks(labels))


def pearson_and_spearman(logits: Tensor, labels: Tensor) -> float:
    """Mean of both correlations, the official metric of STS-B in GLUE."""
    return (pearson(logits, labels) + spearman(logits, labels)) / 2


def r_squared(outputs: Tensor, labels: Tensor) -> float:
    """100 times the coefficient of determination: 100 for no error, 0 for the mean of the labels, negative below that."""
    residual = (outputs.double().flatten() - labels.double()).square().sum()
    spread = (labels.double() - labels.double().mean()).square().sum()
    return float(100.0 * (1.0 - residual / spread)) if spread else 0.0


def linear_cka(x: Tensor, y: Tensor) -> float:
    """100 times the linear centred kernel alignment of two sets of vectors (Kornblith et al. 2019); widths may differ.

    Args:
        x, y: (count, width), for the same inputs.

    Returns:
        100 if they are equal up to rotation, shift and scale; near 0 if they are unrelated.
    """
    x, y = (vectors.double() - vectors.double().mean(0) for vectors in (x, y))
    cross = (y.T @ x).square().sum()
    norm = (x.T @ x).square().sum().sqrt() * (y.T @ y).square().sum().sqrt()
    return float(100 * cross / norm.clamp(min=1e-30))


def _ranks(values: Tensor) -> Tensor:
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    mean_rank: Tensor = ends - (counts.double() - 1) / 2
    return mean_rank[group]


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0
