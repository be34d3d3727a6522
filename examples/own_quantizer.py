"""A custom quantizer: levels at powers of two, by which hardware multiplies with shifts (Miyashita et al. 2016).

bitstill.prepare(model, bitstill.quant.Compression(weight=PowersOfTwo(bits=2)))

In a run file: `options: {weight_quantizer: {kind: examples.own_quantizer:PowersOfTwo, bits: 2}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitstill.errors import SpecError
from bitstill.quant import (
    Granularity,
    PerChannel,
    Plane,
    Quantized,
    Quantizer,
    ScaleDtype,
    grid_of,
    group_extremes,
    group_mask,
    set_pruned,
    stored_scale,
    to_groups,
    usable_scale,
)


@dataclass(frozen=True)
class PowersOfTwo(Quantizer):
    """Sign and power of two, times a scale: -1, -1/2, ..., 1/2, 1 times the largest magnitude of the group.

    Args:
        bits: 2 to 5, for 2^(bits-1) powers of two, the largest of which is 1.
        granularity: weights that share a scale.
        scale_dtype: precision of scales, in training and on disk.
    """

    bits: int = 2
    granularity: Granularity = PerChannel()  # noqa: RUF009 (frozen)
    scale_dtype: ScaleDtype = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 5:
            fix = "More bits add levels nearer to zero, where none is needed."
            raise SpecError("bits from 2 to 5", given=str(self.bits), where="PowersOfTwo", fix=fix)

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{self.bits}-bit powers of two"

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Round each weight to its nearest level."""
        grid = grid_of(weight.shape, self.granularity)
        groups = to_groups(weight.float(), grid)
        low, high = group_extremes(groups, group_mask(mask, grid, weight.device))
        scale = stored_scale(torch.maximum(high, -low), self.torch_scale_dtype)
        positive = 2.0 ** -torch.arange(2 ** (self.bits - 1), device=weight.device, dtype=torch.float32)
        levels = torch.cat([-positive, positive.flip(0)])
        nearest = torch.bucketize(groups / usable_scale(scale).unsqueeze(-1), (levels[1:] + levels[:-1]) / 2)
        values = set_pruned(levels[nearest], mask, grid, float(levels[0]))
        return Quantized((Plane(values, levels, scale),), grid, weight.shape, mask)
