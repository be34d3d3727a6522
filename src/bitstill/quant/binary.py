"""Binary weights: one bit each, plus a scale per group.

Legend: R rows, G groups per row, K weights per group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitstill.constraints import check_fields
from bitstill.quant.base import Clipped, Quantizer, ScaleDtype, State, StraightThrough, clip, inside
from bitstill.quant.gradients import straight_through, through_scale
from bitstill.quant.granularity import Granularity, PerChannel, grid_of
from bitstill.quant.grouping import group_mask, group_mean, set_pruned, to_groups
from bitstill.quant.quantized import Plane, Quantized, SignPlane
from bitstill.quant.scales import stored_scale


@dataclass(frozen=True)
class Binary(Quantizer):
    """sign(w) times the mean magnitude of the group: 1 bit per weight.

    Args: `granularity`, `gradient` (not `ExactScale`), `scale_dtype` as for `Uniform`; `learned_scale` trains the scales
    beside the weights, starting at those of the formula.
    """

    granularity: Granularity = field(default_factory=PerChannel)
    gradient: StraightThrough | Clipped = field(default_factory=StraightThrough)
    scale_dtype: ScaleDtype = "float32"
    learned_scale: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """Name in reports."""
        return "binary"

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """Learned scales (rows, groups) float32, initialized by the formula; empty if scales are not learned."""
        if not self.learned_scale:
            return {}
        return {"scale": State(self.quantize(weight, mask, {}).planes[0].scale_RG.clone())}

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize `weight` to its two levels."""
        dtype = self.torch_scale_dtype
        clipped, scale_RG = clip(weight, self.gradient), state.get("scale")
        return binary(clipped, mask, granularity=self.granularity, scale_dtype=dtype, scale_RG=scale_RG)

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """`effective` with a gradient to `weight`, and to learned scales."""
        passes = inside(weight, self.gradient, passes)
        if self.learned_scale:
            return through_scale(state["scale"], weight, quantized, effective, passes)
        return straight_through(weight, effective, passes)


def binary(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    granularity: Granularity,
    scale_dtype: torch.dtype = torch.float32,
    scale_RG: Tensor | None = None,
) -> Quantized:
    """sign(w) * mean|w|, with sign(0) = +1 (Rastegari et al. 2016, XNOR-Net, eq. 6: the least-squares scale).

    sign() of most libraries gives 0 for 0, which would be a third level; here there are two, by the sign bit, so that -0.0 is
    negative.

    Args:
        weight: float tensor of any shape.
        mask: bool of the same shape, False where pruned; the mean is over what survives.
        granularity: which weights share a scale.
        scale_dtype: precision in which the scale is kept.
        scale_RG: scales to use instead of the mean.

    Returns:
        A `Quantized` of one plane with levels -1, +1 and no offset.
    """
    grid = grid_of(weight.shape, granularity)
    w_RGK = to_groups(weight.float(), grid)
    # copysign, since torch.where takes six times as long on a CPU, which is noticeable in a training step.
    signs_RGK = set_pruned(w_RGK, mask, grid, 1.0)
    if scale_RG is None:
        scale_RG = stored_scale(group_mean(w_RGK.abs(), group_mask(mask, grid, weight.device)), scale_dtype)
        return Quantized((SignPlane(torch.copysign(scale_RG.unsqueeze(-1), signs_RGK), scale_RG),), grid, weight.shape, mask)
    values_RGK = torch.copysign(torch.ones((), device=weight.device), signs_RGK)
    levels = torch.tensor([-1.0, 1.0], device=weight.device)
    return Quantized((Plane(values_RGK, levels, stored_scale(scale_RG, scale_dtype)),), grid, weight.shape, mask)
