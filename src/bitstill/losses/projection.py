"""A learned projection of the student's hidden states to the hidden size of its teacher; it is never delivered."""

from __future__ import annotations

from torch import Tensor, nn

from bitstill.errors import SpecError


class Projection(nn.Linear):
    """A linear map for the hidden states of all layers (Jiao et al. 2020, eq. 8, shared between layers as in their code).

    Args:
        student, teacher: hidden sizes.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__(student, teacher)

    def forward(self, input: Tensor) -> Tensor:
        """Hidden states (batch, positions, student) -> (batch, positions, teacher); other tensors (scores) are unchanged.

        Raises:
            SpecError: hidden states of another width.
        """
        if input.ndim != 3:
            return input
        if input.shape[-1] != self.in_features:
            fix = "Make the projection for the student's width, or leave it out where the teacher's is the same."
            given = f"hidden states of {input.shape[-1]}"
            where = f"a projection from {self.in_features} to {self.out_features}"
            raise SpecError(f"hidden states of width {self.in_features}", given=given, where=where, fix=fix)
        return super().forward(input)
