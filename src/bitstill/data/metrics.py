"""The metrics by which GLUE judges (Wang et al. 2018), in percent: larger is better.

Each takes logits (samples, classes), or (samples,) or (samples, 1) for regression, and labels (samples,).
"""

from __future__ import annotations

import math

from torch import Tensor

from bitstill.data.task import accuracy


def matthews(logits: Tensor, labels: Tensor) -> float:
    """100 times Matthews' correlation of two classes (Matthews 1975); 0 where it is not defined."""
    predicted, wanted = logits.argmax(-1) == 1, labels == 1
    tp, tn = int((predicted & wanted).sum()), int((~predicted & ~wanted).sum())
    fp, fn = int((predicted & ~wanted).sum()), int((~predicted & wanted).sum())
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return 100.0 * (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def f1(logits: Tensor, labels: Tensor) -> float:
    """100 times the F1 score of class 1; 0 where neither prediction nor label has it."""
    predicted, wanted = logits.argmax(-1) == 1, labels == 1
    both, either = int((predicted & wanted).sum()), int(predicted.sum()) + int(wanted.sum())
    return 200.0 * both / either if either else 0.0


def accuracy_and_f1(logits: Tensor, labels: Tensor) -> float:
    """Mean of accuracy and F1, by which GLUE ranks MRPC and QQP."""
    return (accuracy(logits, labels) + f1(logits, labels)) / 2


def pearson(logits: Tensor, labels: Tensor) -> float:
    """100 times Pearson's correlation; 0 where one side is constant."""
    x, y = logits.double().flatten(), labels.double()
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return 100.0 * float(x @ y) / scale if scale else 0.0


def spearman(logits: Tensor, labels: Tensor) -> float:
    """100 times Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return pearson(_ranks(logits.flatten()), _ranks(labels))


def pearson_and_spearman(logits: Tensor, labels: Tensor) -> float:
    """Mean of both correlations, by which GLUE ranks STS-B."""
    return (pearson(logits, labels) + spearman(logits, labels)) / 2


def _ranks(values: Tensor) -> Tensor:
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    mean_rank: Tensor = ends - (counts.double() - 1) / 2
    return mean_rank[group]


__all__ = ["accuracy", "accuracy_and_f1", "f1", "matthews", "pearson", "pearson_and_spearman", "spearman"]
