"""Scales and offsets of least squared error: for weights that nothing trains after they are quantized.

A range from minimum to maximum spends its levels on the few largest weights. At 2 to 4 bits most weights are then rounded to
the two levels in the middle; narrower ranges, which cut the largest off, have a smaller error. Each of several ranges is
refined as in Lloyd's algorithm with evenly spaced levels (Max 1960): codes by the nearest level, then step and offset by linear
regression of the weights on their codes, in turns. The best is taken, as it will be stored; the whole range is one of them.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitstill.quant.scales import usable_scale

STARTS: dict[bool, tuple[float, ...]] = {True: (1.0, 0.8, 0.6, 0.45, 0.3), False: (1.0, 0.95, 0.9, 0.85, 0.8)}
"""Fractions of the way from the middle to each end of the range at which a search begins, in all pairs; True for few levels,
which are better spent on the middle."""
FEW_LEVELS = 8
ROUNDS = 3
"""Rounds of refinement from each start."""

Stored = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Step and offset as they will be stored."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Weights to fit, and the levels that they may take: code * step + offset.

    Args:
        w_RGK: float32.
        keep: bool of the same shape, which weights count; None when all do.
        lowest, highest: ends of the codes.
        at_zero: bool (R, G), groups in which one level is zero, for some code.
        stored: rounds a step and an offset to what will be stored.
    """

    w_RGK: Tensor
    keep: Tensor | None
    lowest: int
    highest: int
    at_zero: Tensor
    stored: Stored

    @property
    def symmetric(self) -> bool:
        """Whether levels are symmetric about zero."""
        return self.lowest == -self.highest

    def codes(self, step_RG: Tensor, offset_RG: Tensor) -> Tensor:
        """The code of the level nearest to each weight, float32 (R, G, K)."""
        position = (self.w_RGK - offset_RG.unsqueeze(-1)) / usable_scale(step_RG).unsqueeze(-1)
        return position.round_().clamp_(self.lowest, self.highest)

    def error(self, step_RG: Tensor, offset_RG: Tensor) -> Tensor:
        """Sum of squared differences from the nearest levels, (R, G)."""
        levels = self.codes(step_RG, offset_RG).mul_(step_RG.unsqueeze(-1)).add_(offset_RG.unsqueeze(-1))
        return self._total(levels.sub_(self.w_RGK).square_())

    def regression(self, codes: Tensor, step_RG: Tensor, offset_RG: Tensor) -> tuple[Tensor, Tensor]:
        """Step and offset of least squared error for these codes; as they were where no step above zero is one."""
        count = float(self.w_RGK.shape[-1]) if self.keep is None else self.keep.sum(-1).clamp(min=1).float()
        code_of_zero = torch.round(-offset_RG / usable_scale(step_RG))
        mean_code = torch.where(self.at_zero, code_of_zero, self._total(codes) / count)
        mean_weight = torch.where(self.at_zero, 0.0, self._total(self.w_RGK) / count)
        centred = codes - mean_code.unsqueeze(-1)
        products = self._total(centred * (self.w_RGK - mean_weight.unsqueeze(-1)))
        squares = self._total(centred.square_())
        usable = (squares > 0) & (products > 0)
        step = torch.where(usable, products / torch.where(usable, squares, 1.0), step_RG)
        return step, torch.where(usable, mean_weight - step * mean_code, offset_RG)

    def _total(self, x: Tensor) -> Tensor:
        return (x if self.keep is None else torch.where(self.keep, x, 0.0)).sum(-1)


def least_squares(problem: Problem, step_RG: Tensor, offset_RG: Tensor) -> tuple[Tensor, Tensor]:
    """Step and offset, as stored, of the smallest squared error that the search finds; never more than the whole range has.

    Args:
        problem: weights and levels.
        step_RG, offset_RG: of the whole range.
    """
    best_step, best_offset = problem.stored(step_RG, offset_RG)
    best = problem.error(best_step, best_offset)
    span = problem.highest - problem.lowest
    fractions = STARTS[span < FEW_LEVELS]
    below, above = -step_RG * span / 2, step_RG * span / 2
    middle = offset_RG + step_RG * ((problem.lowest + problem.highest) / 2)
    pairs = zip(fractions, fractions, strict=True) if problem.symmetric else itertools.product(fractions, repeat=2)
    for down, up in pairs:
        step = (up * above - down * below) / span
        step, offset = problem.stored(step, middle + down * below - problem.lowest * step)
        for _ in range(ROUNDS):
            step, offset = problem.stored(*problem.regression(problem.codes(step, offset), step, offset))
            error = problem.error(step, offset)
            better = error < best
            best, best_step = torch.where(better, error, best), torch.where(better, step, best_step)
            best_offset = torch.where(better, offset, best_offset)
    return best_step, best_offset
