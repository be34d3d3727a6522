"""The contract of a weight quantizer, and what most methods share: gradient rules and dtypes of scales.

A method is a frozen dataclass derived from `Quantizer`, inside this package or outside of it: settings, a name, a formula, a
gradient rule where straight-through is not enough, and the tensors that it keeps between steps. Training, freezing, packing,
artifacts and exports ask it through this contract alone.
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
    """A tensor that a quantizer keeps beside a weight from step to step; it is in every checkpoint, and never delivered.

    Args:
        value: where it starts.
        role: "number" is trained and never decays (a scale, a step, a point); "weight" is a further latent weight, which is
            trained and decays as the first one does; "buffer" is set by `after_step`, and equal in all processes.
        per_row: whether its first dimension runs over the rows of the weight, so that a few rows can be quantized alone.
    """

    value: Tensor
    role: Role = "number"
    per_row: bool = True


@dataclass(frozen=True, eq=False)
class OptimizerStep:
    """What an optimizer has just done to a latent weight.

    Args:
        layer: name of the layer, for messages.
        optimizer: name of the optimizer's class, for messages.
        gradient: of the latent weight, in its shape; None where it took no part in the step.
        second_moment: running mean of the squared gradient as Adam keeps it, in the same shape; None under other optimizers.
    """

    layer: str
    optimizer: str
    gradient: Tensor | None
    second_moment: Tensor | None


class Quantizer(ABC):
    """How one weight is quantized: settings, formula, gradient, and what is kept between steps.

    Subclasses are frozen dataclasses with at least these two fields; `name` and `quantize` must be written.

    Attributes:
        granularity: which weights share a scale.
        scale_dtype: precision of scales and offsets, in training and on disk.
    """

    granularity: Granularity
    scale_dtype: ScaleDtype

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        """`scale_dtype` as torch names it."""
        return SCALE_DTYPES[self.scale_dtype]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in reports."""

    @abstractmethod
    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """The quantized weight. Called without gradient, in float32 whatever autocast says.

        Args:
            weight: latent, of any shape.
            mask: bool of the same shape, False where pruned; pruned weights take no part in any statistic.
            state: the tensors of `initial_state` as they are now, by name, float32; for some rows of the weight alone where
                all of them are `per_row`.
            training: lets what acts in training alone (stochastic rounding) act.
        """

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """`effective`, bit for bit, with a gradient to `weight` and to what is trained in `state`; straight through here.

        Args:
            weight: latent.
            quantized: what `quantize` made of it.
            effective: `quantized`, dequantized, without gradient, in the shape and dtype of `weight`.
            state: as for `quantize`.
            passes: bool of the same shape, False where no gradient shall reach the weight; None lets it pass everywhere.
        """
        return straight_through(weight, effective, passes)

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """The tensors to keep beside a weight, by name, as they are at the start; none here."""
        return {}

    def after_step(self, state: Mapping[str, Tensor], step: OptimizerStep) -> None:  # noqa: B027 (most methods keep nothing)
        """Change `state` in place after an optimizer's step; nothing here.

        Raises:
            SpecError: the method needs another optimizer.
        """

    def never_updated(self, state: Mapping[str, Tensor]) -> bool:
        """Whether buffers in `state` are still what they were at the start, so that the weight cannot be frozen yet."""
        return False

    def latent(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The float weight that all latent weights together stand for."""
        return weight


@dataclass(frozen=True, eq=False)
class SplitWeight:
    """A weight that has been split into two planes.

    Args:
        quantizer: of what is there now.
        weight: the first latent weight.
        state: what the new quantizer keeps, the second latent weight among it.
    """

    quantizer: Quantizer
    weight: Tensor
    state: dict[str, State]


class Splittable(Quantizer):
    """A quantizer whose weights can be split exactly into two binary ones that are added up (Bai et al. 2021)."""

    @abstractmethod
    def split(self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], layer: str) -> SplitWeight:
        """The two binary weights with the same quantized sum.

        Args:
            weight, mask, state: as for `quantize`.
            layer: its name, for messages.

        Raises:
            SpecError: no two binary weights add up to it.
        """

    @abstractmethod
    def one_plane(self) -> Quantizer:
        """The binary quantizer with the same settings, for weights that are not worth two planes."""


class CountedLevels(Quantizer):
    """A quantizer whose number of levels may differ from weight to weight, and change while training."""

    @abstractmethod
    def count_of(self, state: Mapping[str, Tensor]) -> int:
        """How many levels a weight with this state has."""

    @abstractmethod
    def with_count(self, weight: Tensor, mask: Tensor | None, count: int) -> dict[str, State]:
        """Fresh state of a weight with `count` levels."""


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
