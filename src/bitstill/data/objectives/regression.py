"""Regression: one value per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bitstill.data.metrics import pearson, pearson_and_spearman, r_squared, spearman
from bitstill.data.objective import DetailTable, HeadKind, Imitation
from bitstill.errors import DataError, SpecError, suggest
from bitstill.losses.logits import MeanSquaredError, Reduction
from bitstill.losses.loss import Loss
from bitstill.losses.taps import as_logits
from bitstill.schedules import Scheduled

Metric = Callable[[Tensor, Tensor], float]
_METRICS: dict[str, Metric] = {
    "mean of Pearson and Spearman": pearson_and_spearman,
    "Pearson correlation": pearson,
    "Spearman correlation": spearman,
    "R squared": r_squared,
}


@dataclass(frozen=True)
class Regression:
    """One value per sample.

    Args:
        decides: "mean of Pearson and Spearman", "Pearson correlation", "Spearman correlation", "R squared", or one of
            `extra_metrics`.
        extra_metrics: by name, (outputs (samples,) or (samples, 1), labels (samples,)) -> a number, larger is better.
    """

    decides: str = "mean of Pearson and Spearman"
    extra_metrics: Mapping[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {**_METRICS, **self.extra_metrics}
        if self.decides not in known:
            raise SpecError("a known metric", given=repr(self.decides), where="Regression", fix=suggest(self.decides, known))

    @property
    def width(self) -> int:
        """The value."""
        return 1

    @property
    def label_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def head_kind(self) -> HeadKind:
        """One row of outputs per sample."""
        return "sample"

    @property
    def summary(self) -> str:
        """One value."""
        return "one value"

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Labels are numbers (samples,).

        Raises:
            DataError: there are several per sample.
        """
        if labels.ndim != 1:
            fix = "Give one number per sample."
            raise DataError("labels (samples,)", given=f"shape {tuple(labels.shape)}", where=where, fix=fix)

    def read(self, output: object, batch: Mapping[str, Tensor]) -> Tensor:
        """Values (samples,) or (samples, 1)."""
        return as_logits(output)

    def label_loss(self) -> Loss:
        """Squared error."""
        return MeanSquaredError()

    def imitation_loss(self, kind: Imitation, temperature: Scheduled = 1.0, reduction: Reduction = "batchmean") -> Loss:
        """Squared error for every family: a softmax over one output is constant."""
        return MeanSquaredError()

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """In percent, but for `extra_metrics`."""
        return {name: metric(outputs, labels) for name, metric in {**_METRICS, **self.extra_metrics}.items()}

    def report(self, outputs: Tensor, labels: Tensor) -> dict[str, DetailTable]:
        """Root mean squared and mean absolute error, in units of the labels."""
        errors = outputs.double().flatten() - labels.double()
        figures = (float(errors.square().mean().sqrt()), float(errors.abs().mean()))
        return {"errors": DetailTable(("root mean squared", "mean absolute"), {"all samples": figures})}

    def constant_output(self, labels: Tensor) -> Tensor:
        """The mean."""
        return labels.float().mean().reshape(1)

    def head(self) -> dict[str, Any]:
        """One output that is no class."""
        return {"num_labels": 1, "problem_type": "regression"}
