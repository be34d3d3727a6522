"""The contract of a weight quantizer, and shared parts of most methods: gradient rules and dtypes of scales.

A method is a frozen dataclass derived from `Quantizer`, inside or outside of this package: settings, a name, a formula, a
gradient rule if straight-through is not enough, and its state between steps. Training, freezing, packing, artifacts and exports
use it only through this contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitstill.constraints import Positive, check_fields
from bitstill.quant.gradients import straight_through
from bitstill.quant.granularity import Granularity
from bitstill.quant.quantized import Quantized

ScaleDtype = Literal["float32", "float16"]
SCALE_DTYPES: dict[ScaleDtype, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
Role = Literal["number", "weight", "buffer"]


@dataclass(frozen=True, eq=False)
class State:
    """A tensor of a quantizer's state for one weight; it is part of every checkpoint, and never delivered.

    Args:
        value: initial value.
        role: "number" is trained and never decays (a scale, a step, a point); "weight" is a further latent weight, trained and
            decayed like the first one; "buffer" is set by `after_step`, and equal in all processes.
        per_row: whether its first dimension runs over the rows of the weight, so that single rows can be quantized.
    """

    value: Tensor
    role: Role = "number"
    per_row: bool = True


@dataclass(frozen=True, eq=False)
class OptimizerStep:
    """The state of a latent weight after an optimizer step.

    Args:
        layer: name of the layer, for messages.
        optimizer: name of the optimizer's class, for messages.
        gradient: gradient of the latent weight, in its shape; None if it took no part in the step.
        second_moment: running mean of the squared gradient as Adam keeps it, in the same shape; None under other optimizers.
    """

    layer: str
    optimizer: str
    gradient: Tensor | None
    second_moment: Tensor | None


class Quantizer(ABC):
    """A method of weight quantization: settings, formula, gradient, and state between steps.

    Subclasses are frozen dataclasses with at least these two fields; `name` and `quantize` must be written.

    Attributes:
        granularity: which weights share a scale.
        scale_dtype: precision of scales and offsets, in training and on disk.
    """

    granularity: Granularity
    scale_dtype: ScaleDtype

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        """`scale_dtype` as a torch dtype."""
        return SCALE_DTYPES[self.scale_dtype]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in reports."""

    @abstractmethod
    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize a weight. Called without gradient, in float32 regardless of autocast.

        Args:
            weight: latent, of any shape.
            mask: bool of the same shape, False where pruned; pruned weights take no part in any statistic.
            state: current values of the tensors of `initial_state`, by name, float32; restricted to some rows of the weight if
                all of them are `per_row`.
            training: enables behaviour that is limited to training (stochastic rounding).
        """

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """Attach a gradient to `effective`, whose values stay the same bit for bit; straight-through by default.

        Args:
            weight: latent weight, which receives a gradient, as do trained tensors in `state`.
            quantized: result of `quantize`.
            effective: `quantized`, dequantized, without gradient, in the shape and dtype of `weight`.
            state: as for `quantize`.
            passes: bool of the same shape, False where no gradient may reach the weight; None passes it everywhere.
        """
        return straight_through(weight, effective, passes)

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """Initial state for a weight, by name; empty by default."""
        return {}

    def after_step(self, state: Mapping[str, Tensor], step: OptimizerStep) -> None:  # noqa: B027 (most methods keep nothing)
        """Update `state` in place after an optimizer step; does nothing by default.

        Raises:
            SpecError: the method needs another optimizer.
        """

    def never_updated(self, state: Mapping[str, Tensor]) -> bool:
        """Whether buffers in `state` still have their initial values, so that the weight cannot be frozen yet."""
        return False

    def latent(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Float weight represented by all latent weights together."""
        return weight


@dataclass(frozen=True, eq=False)
class SplitWeight:
    """A weight split into two planes.

    Args:
        quantizer: quantizer of the two planes.
        weight: the first latent weight.
        state: state of that quantizer, including the second latent weight.
    """

    quantizer: Quantizer
    weight: Tensor
    state: dict[str, State]


class Splittable(Quantizer):
    """A quantizer whose weights can be split exactly into a sum of two binary ones (Bai et al. 2021)."""

    @abstractmethod
    def split(self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], layer: str) -> SplitWeight:
        """Split a weight into two binary ones with the same quantized sum.

        Args:
            weight, mask, state: as for `quantize`.
            layer: its name, for messages.

        Raises:
            SpecError: no two binary weights add up to it.
        """

    @abstractmethod
    def one_plane(self) -> Quantizer:
        """Binary quantizer with the same settings, for weights that are not split."""


class CountedLevels(Quantizer):
    """A quantizer whose number of levels may differ between weights, and change in training."""

    @abstractmethod
    def count_of(self, state: Mapping[str, Tensor]) -> int:
        """Number of levels of a weight with this state."""

    @abstractmethod
    def with_count(self, weight: Tensor, mask: Tensor | None, count: int) -> dict[str, State]:
        """Initial state of a weight with `count` levels."""


@dataclass(frozen=True)
class StraightThrough:
    """The gradient of Q(w) goes to w unchanged (Bengio et al. 2013)."""


@dataclass(frozen=True)
class Clipped:
    """w is clipped to [-bound, bound] before it is quantized, and no gradient passes outside."""

    bound: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ExactScale:
    """Straight through, plus the exact derivative through each group's minimum and maximum (`Uniform`, affine only)."""


Gradient = StraightThrough | Clipped | ExactScale


def clip(weight: Tensor, gradient: Gradient) -> Tensor:
    """`weight`, clipped if the gradient rule is `Clipped`."""
    return weight.clamp(-gradient.bound, gradient.bound) if isinstance(gradient, Clipped) else weight


def inside(weight: Tensor, gradient: Gradient, passes: Tensor | None) -> Tensor | None:
    """`passes`, and only where the weight is not clipped; None is everywhere."""
    if not isinstance(gradient, Clipped):
        return passes
    unclipped = weight.detach().abs() <= gradient.bound
    return unclipped if passes is None else passes & unclipped
