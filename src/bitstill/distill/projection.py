"""A learned map from the student's hidden states to those of a teacher of another width; it is never delivered."""

from __future__ import annotations

from torch import Tensor, nn


class Projection(nn.Linear):
    """One linear map for the hidden states of all layers (Jiao et al. 2020, eq. 8, shared between layers as in their code).

    Args:
        student, teacher: widths.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__(student, teacher)

    def forward(self, input: Tensor) -> Tensor:
        """Hidden states (batch, positions, student) -> (batch, positions, teacher); anything else (scores) as it is."""
        return super().forward(input) if input.ndim == 3 and input.shape[-1] == self.in_features else input
