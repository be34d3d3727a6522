r"""A custom kind of task: counts, modelled by a Poisson distribution whose rate the network predicts.

    bitstill compress --recipe quantized-distillation --task examples.own_task:visits --out small \
        --teacher examples.own_task:Network --student examples.own_task:Network --bits 4 --epochs 30

It takes only an objective: every recipe, report and table gets losses and metrics from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstill.data import DetailTable, Split, Task
from bitstill.losses import Loss, Output, as_logits


@dataclass(frozen=True)
class PoissonLoss:
    """Negative log-likelihood of the labels, up to a constant; outputs are log rates. Mean over the batch."""

    needs_teacher = False

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        """The loss of a batch."""
        log_rate = student.logits.float().flatten()
        return (log_rate.exp() - labels * log_rate).mean()

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()


@dataclass(frozen=True)
class PoissonDivergence:
    """KL divergence of the student's Poisson distribution from the teacher's, mean over the batch."""

    needs_teacher = True

    def __call__(self, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        """The loss of a batch."""
        assert target is not None
        ours, theirs = student.logits.float().flatten(), target.logits.float().flatten()
        return (theirs.exp() * (theirs - ours) - theirs.exp() + ours.exp()).mean()

    def taps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """No intermediate outputs."""
        return (), ()


@dataclass(frozen=True)
class Counts:
    """One count per sample: labels are whole numbers as floats (samples,), outputs are log rates (samples, 1)."""

    decides: str = "deviance explained"
    width: int = 1
    label_names: tuple[str, ...] = ()
    summary: str = "one rate"

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Check that labels are whole numbers of at least 0."""
        if labels.ndim != 1 or bool((labels < 0).any()) or bool((labels != labels.round()).any()):
            raise ValueError(f"{where}: counts have to be whole numbers of at least 0")

    def read(self, output: object, batch: Mapping[str, Tensor]) -> Tensor:
        """Output of the network, as it is."""
        return as_logits(output)

    def label_loss(self) -> Loss:
        """Loss by Poisson likelihood."""
        return PoissonLoss()

    def imitation_loss(self, kind: str, temperature: object = 1.0, reduction: str = "batchmean") -> Loss:
        """Poisson divergence for every family."""
        return PoissonDivergence()

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Explained deviance in percent: 0 for the mean of the labels, 100 for perfect rates."""
        deviance, worst = _deviance(outputs.flatten().exp(), labels), _deviance(labels.mean().expand_as(labels), labels)
        return {"deviance explained": 100.0 * (1.0 - deviance / worst)}

    def report(self, outputs: Tensor, labels: Tensor) -> dict[str, DetailTable]:
        """Mean count and mean rate, which should agree."""
        figures = (float(labels.mean()), float(outputs.exp().mean()))
        return {"counts": DetailTable(("mean count", "mean rate"), {"all samples": figures})}

    def constant_output(self, labels: Tensor) -> Tensor:
        """Logarithm of the mean count."""
        return labels.mean().log().reshape(1)

    def head(self) -> dict[str, Any]:
        """One output that is not a class."""
        return {"num_labels": 1, "problem_type": "regression"}


class Network(nn.Module):
    """Map from time and weekday (N, 9) to the log rate (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the rate."""
        return self.layers(x)


def visits(_data: Path | None = None) -> Task:
    """Synthetic visitors of a library per hour; rates rise towards the afternoon and halve on weekends."""
    splits = [_split(samples, seed) for seed, samples in enumerate((1024, 128, 512))]
    return Task("visits", *splits, Counts(), lambda model, batch: model(batch["time"]))


def _split(samples: int, seed: int) -> Split:
    """Random samples: the time as a point on a circle, the weekday one-hot."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(samples, generator=generator)
    day = torch.randint(0, 7, (samples,), generator=generator)
    counts = torch.poisson(torch.exp(1.5 - angle.cos() - 0.7 * (day >= 5)), generator=generator)
    return Split({"time": torch.cat([angle.cos()[:, None], angle.sin()[:, None], F.one_hot(day, 7)], 1)}, counts)


def _deviance(rates: Tensor, counts: Tensor) -> float:
    """Deviance: 2 sum(count log(count / rate) - count + rate); a count of 0 adds only its rate."""
    return float(2 * (torch.xlogy(counts, counts / rates) - counts + rates).sum())
