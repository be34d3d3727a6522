"""Published systems as lists of stages: each a frozen dataclass of settings and one method that turns them into stages."""

from __future__ import annotations

from bitstill.errors import SpecError, suggest
from bitstill.recipes.binarybert import BinaryBERT
from bitstill.recipes.differentiable_quantization import DifferentiableQuantization
from bitstill.recipes.fine_tuning import FineTuning
from bitstill.recipes.post_training import PostTraining
from bitstill.recipes.pqk import PQK
from bitstill.recipes.protocol import Recipe
from bitstill.recipes.quantized_distillation import QuantizedDistillation
from bitstill.recipes.xtc import XTC

AnyRecipe = BinaryBERT | DifferentiableQuantization | FineTuning | PQK | PostTraining | QuantizedDistillation | XTC


RECIPES: dict[str, type[AnyRecipe]] = {
    "binarybert": BinaryBERT,
    "differentiable-quantization": DifferentiableQuantization,
    "fine-tuning": FineTuning,
    "post-training": PostTraining,
    "pqk": PQK,
    "quantized-distillation": QuantizedDistillation,
    "xtc": XTC,
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
    "PQK",
    "RECIPES",
    "XTC",
    "AnyRecipe",
    "BinaryBERT",
    "DifferentiableQuantization",
    "FineTuning",
    "PostTraining",
    "QuantizedDistillation",
    "Recipe",
    "recipe_class",
    "recipe_name",
    "recipe_named",
]
