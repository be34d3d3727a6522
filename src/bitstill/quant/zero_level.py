"""Affine groups that contain exact zeros: one level is zero there, so that pruned weights stay zero.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ZERO_BITS, _STEP_BITS = 4, 7
"""Significant bits of the code of zero and of the step where both are stored in float16: their product has 11, which float16
holds exactly."""
_LARGEST = 2.0**15
"""Bound of the lowest level in float16."""


def holds_zero(w_RGK: Tensor, keep: Tensor | None) -> Tensor:
    """Whether an included weight is exactly zero: bool (R, G)."""
    magnitude = w_RGK.abs()
    if keep is not None:
        magnitude = torch.where(keep, magnitude, 1.0)
    return magnitude.amin(-1) == 0


def level_at_zero(step_RG: Tensor, low_RG: Tensor, top: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Step and offset near `step_RG` and `low_RG` with offset = -(code of zero) * step, exactly and in `scale_dtype`.

    Args:
        step_RG: distance of levels, above zero.
        low_RG: the lowest level, at most 0, with the highest, low + top * step, at least 0.
        top: the largest code.
        scale_dtype: in which both are stored. In float16 a step keeps 7 significant bits, and beyond 4 bits of weights the code
            of zero 4, with a step that is wide enough for both ends.

    Returns:
        Step and offset, float32 (R, G).
    """
    zero_RG = torch.round(-low_RG / step_RG).clamp_(0, top)
    if scale_dtype == torch.float16:
        coarse_RG = _significant(zero_RG, _ZERO_BITS).clamp_(max=_largest_code(top))
        below = torch.where(coarse_RG > 0, -low_RG / coarse_RG.clamp(min=1), 0.0)
        above = torch.where(coarse_RG < top, (low_RG + top * step_RG) / (top - coarse_RG).clamp(min=1), 0.0)
        widened_RG = torch.maximum(step_RG, torch.maximum(below, above))
        step_RG = _significant(torch.where(coarse_RG == zero_RG, step_RG, widened_RG), _STEP_BITS)
        zero_RG, step_RG = coarse_RG, step_RG.clamp(max=_LARGEST / (top + 1)).to(scale_dtype).float()
    return step_RG, 0.0 - zero_RG * step_RG


def _largest_code(top: int) -> int:
    """Largest code up to `top` with the significant bits allowed for the code of zero."""
    unused = 1 << max(0, top.bit_length() - _ZERO_BITS)
    return top // unused * unused


def _significant(x: Tensor, bits: int) -> Tensor:
    """`x` rounded to `bits` significant bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)
