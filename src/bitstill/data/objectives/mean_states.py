"""Mean hidden states of an encoder, compared with those of a teacher: what general distillation judges a student by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitstill.data.metrics import linear_cka
from bitstill.data.objective import DetailTable, HeadKind, Imitation, refuse_imitation
from bitstill.errors import DataError, MatchError
from bitstill.losses.logits import Reduction
from bitstill.losses.loss import Loss
from bitstill.schedules import Scheduled


@dataclass(frozen=True)
class MeanStates:
    """The mean over positions of the last layer's hidden states.

    Training samples have no labels; those of held-out ones are the teacher's mean states, whose width may be another.
    """

    decides: str = "linear CKA"

    @property
    def width(self) -> None:
        """Any."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def head_kind(self) -> HeadKind:
        """None: an encoder."""
        return "none"

    @property
    def summary(self) -> str:
        """Mean hidden states."""
        return "mean hidden states"

    def check_labels(self, labels: Tensor, where: str) -> None:
        """Labels are float: one placeholder, or one vector, per sample.

        Raises:
            DataError: they are not.
        """
        if not labels.is_floating_point():
            fix = "Use those of the teacher."
            raise DataError("mean hidden states as labels", given=str(labels.dtype), where=where, fix=fix)

    def read(self, output: object, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean hidden states (samples, width).

        Raises:
            MatchError: the model has a head.
        """
        states = getattr(output, "last_hidden_state", None)
        if not isinstance(states, Tensor):
            fix = "Use an encoder without a head."
            raise MatchError("a model that returns last_hidden_state", given=type(output).__name__, where="MeanStates", fix=fix)
        return states.mean(1)

    def label_loss(self) -> None:
        """None: only hidden states and attention teach."""

    def imitation_loss(self, kind: Imitation, temperature: Scheduled = 1.0, reduction: Reduction = "batchmean") -> Loss:
        """Refused: student and teacher may differ in width.

        Raises:
            SpecError: always.
        """
        refuse_imitation(self, kind, "Imitate hidden states and attention instead, as GeneralDistillation does.")

    def metrics(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Linear CKA with the teacher's mean states, in percent."""
        return {self.decides: linear_cka(outputs, labels)}

    def report(self, outputs: Tensor, labels: Tensor) -> dict[str, DetailTable]:
        """Nothing."""
        return {}

    def constant_output(self, labels: Tensor) -> Tensor:
        """The mean vector."""
        return labels.flatten(1).mean(0) if labels.ndim > 1 else labels.mean().reshape(1)

    def head(self) -> dict[str, Any]:
        """Nothing: there is no head."""
        return {}
