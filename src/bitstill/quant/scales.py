"""Rounding of scales to their storage dtype, and scales safe for division."""

from __future__ import annotations

import torch
from torch import Tensor


def stored_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` rounded to `dtype`, as float32, so that training uses the stored values.

    Values beyond the range of `dtype` become its largest finite value rather than infinity.
    """
    if dtype == torch.float32:
        return scale
    limit = torch.finfo(dtype).max
    return scale.clamp(-limit, limit).to(dtype).float()


def usable_scale(scale: Tensor) -> Tensor:
    """`scale`, or 1 where it is zero or subnormal, for division: a zero group then quantizes to zero, not to NaN."""
    return torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
