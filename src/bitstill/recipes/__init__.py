"""Published systems as lists of stages: each a frozen dataclass of settings and one method that turns them into stages."""

from __future__ import annotations

from typing import Protocol

from bitstill.errors import SpecError, suggest
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


def recipe_named(name: str) -> AnyRecipe:
    """A recipe with its default settings.

    Raises:
        SpecError: unknown name.
    """
    return recipe_class(name)()


def recipe_class(name: str) -> type[AnyRecipe]:
    """The class of the recipe `name`.

    Raises:
        SpecError: unknown name.
    """
    if name not in RECIPES:
        raise SpecError("a known recipe", given=repr(name), where="recipe", fix=suggest(name, RECIPES))
    return RECIPES[name]


def recipe_name(recipe: Recipe) -> str:
    """The name under which `recipe` is known, or its class's name if it is a user's own."""
    return next((name for name, cls in RECIPES.items() if isinstance(recipe, cls)), type(recipe).__name__)


__all__ = [
    "RECIPES",
    "AnyRecipe",
    "DifferentiableQuantization",
    "PostTraining",
    "QuantizedDistillation",
    "Recipe",
    "recipe_class",
    "recipe_name",
    "recipe_named",
]
