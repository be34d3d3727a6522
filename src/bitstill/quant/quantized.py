"""The result of every quantizer: level values, scales and offsets, and the one rule that turns them into weights.

    weight = sum over planes of (level * scale + offset),   and exactly 0 where the mask prunes

A *level* is one of a short sorted list of numbers: 0..2^b-1 for affine, -n..n for symmetric, -1, +1 for binary,
-1, 0, +1 for ternary, anything in [0, 1] for learned points. A *code* is the index of a level; codes are what is stored.
Training keeps the level values (floats that represent the same numbers exactly), because converting them to codes and back
would cost a gather; `codes()` computes codes when the weight is frozen. Both paths end in the same multiplication and the same
addition of the same float32 numbers, hence the invariant: fake-quantized == frozen == packed == reloaded, bit for bit.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitstill.quant.granularity import Grid
from bitstill.quant.grouping import from_groups


@dataclass(frozen=True, eq=False)
class Plane:
    """One set of levels, scales and offsets.

    Args:
        values_RGK: each weight's level, float32; every element is one of `levels`.
        levels: sorted float32 (L,).
        scale_RG: float32.
        offset_RG: float32, or None for schemes that are symmetric about zero.
    """

    values_RGK: Tensor
    levels: Tensor
    scale_RG: Tensor
    offset_RG: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Level * scale + offset, (R, G, K) float32."""
        return dequantize_levels(self.values_RGK, self.scale_RG, self.offset_RG)

    def codes_RGK(self) -> Tensor:
        """Index of each level, uint8 (R, G, K)."""
        return torch.searchsorted(self.levels, self.values_RGK).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class SignPlane:
    """A `Plane` of the levels -1 and +1 that holds only the products, since a training step does not need the levels.

    Args:
        signed_RGK: +scale or -scale, float32; scales are non-negative, but zero is signed.
        scale_RG: float32.
    """

    signed_RGK: Tensor
    scale_RG: Tensor
    offset_RG: None = None

    @property
    def levels(self) -> Tensor:
        """-1 and +1."""
        return torch.tensor([-1.0, 1.0], device=self.signed_RGK.device)

    @property
    def values_RGK(self) -> Tensor:
        """Each weight's level."""
        return torch.copysign(torch.ones((), device=self.signed_RGK.device), self.signed_RGK)

    def dequantize(self) -> Tensor:
        """Level * scale, (R, G, K) float32."""
        return self.signed_RGK

    def codes_RGK(self) -> Tensor:
        """Index of each level, uint8 (R, G, K)."""
        return (~torch.signbit(self.signed_RGK)).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized weight of `shape`: a sum of one or more planes, and a mask.

    Args:
        planes: at least one; two for a split ternary weight.
        grid: division of the weight into groups.
        shape: the weight's shape.
        mask: bool of `shape`, False where the weight is pruned to exactly 0; None when nothing is.
    """

    planes: tuple[Plane | SignPlane, ...]
    grid: Grid
    shape: torch.Size
    mask: Tensor | None = None

    def dequantize(self) -> Tensor:
        """The effective weight, float32 of `shape`."""
        groups = self.planes[0].dequantize()
        for plane in self.planes[1:]:
            groups = groups + plane.dequantize()
        return apply_mask(from_groups(groups, self.grid, self.shape), self.mask)

    def equals(self, other: Quantized) -> bool:
        """Whether both have the same stored form."""
        return (
            (self.grid, self.shape, len(self.planes)) == (other.grid, other.shape, len(other.planes))
            and _equal(self.mask, other.mask)
            and all(
                torch.equal(plane.values_RGK, other_plane.values_RGK)
                and torch.equal(plane.levels, other_plane.levels)
                and torch.equal(plane.scale_RG, other_plane.scale_RG)
                and _equal(plane.offset_RG, other_plane.offset_RG)
                for plane, other_plane in zip(self.planes, other.planes, strict=True)
            )
        )

    def codes(self) -> tuple[Tensor, ...]:
        """Codes of each plane, uint8 of `shape`."""
        return tuple(from_groups(plane.codes_RGK(), self.grid, self.shape) for plane in self.planes)


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second if first is None or second is None else torch.equal(first, second)


def dequantize_levels(values_RGK: Tensor, scale_RG: Tensor, offset_RG: Tensor | None) -> Tensor:
    """Level * scale + offset. The product and the sum are rounded separately, here and in every other reader."""
    product = values_RGK * scale_RG.unsqueeze(-1)
    return product if offset_RG is None else product + offset_RG.unsqueeze(-1)


def apply_mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    """`weight` with exactly +0 where `mask` is False."""
    return weight if mask is None else torch.where(mask, weight, 0.0)
