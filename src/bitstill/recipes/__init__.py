"""Published systems as lists of stages: each a frozen dataclass of settings and one method that turns them into stages."""

from __future__ import annotations

from typing import Protocol

from bitstill.recipes.differentiable_quantization import DifferentiableQuantization
from bitstill.recipes.post_training import PostTraining
from bitstill.recipes.quantized_distillation import QuantizedDistillation
from bitstill.train.stage import Stage

AnyRecipe = DifferentiableQuantization | PostTraining | QuantizedDistillation


class Recipe(Protocol):
    """What `compress` needs from a recipe."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a model named "teacher" takes part."""

    def stages(self, *, train_teacher: bool) -> tuple[Stage, ...]:
        """The stages; `train_teacher` puts one in front that trains the teacher on the labels."""


RECIPES: dict[str, type[AnyRecipe]] = {
    "differentiable-quantization": DifferentiableQuantization,
    "post-training": PostTraining,
    "quantized-distillation": QuantizedDistillation,
}

__all__ = ["RECIPES", "AnyRecipe", "DifferentiableQuantization", "PostTraining", "QuantizedDistillation", "Recipe"]
