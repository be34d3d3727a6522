"""Recipes by name, which is that of their module with dashes; options are read from the recipe classes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from bitstill import recipes
from bitstill._lazy import public_names
from bitstill.constraints import constraints
from bitstill.decode import encode
from bitstill.errors import SpecError, suggest
from bitstill.import_path import import_class, import_path_of, is_import_path
from bitstill.recipes.recipe import Recipe


def _published() -> dict[str, type[Recipe]]:
    origins = sorted(public_names(recipes.__file__).items(), key=lambda item: item[1].module)
    classes = [(origin.module.rpartition(".")[2], getattr(recipes, name)) for name, origin in origins]
    return {module.replace("_", "-"): cls for module, cls in classes if cls is not Recipe and hasattr(cls, "stages")}


RECIPES = _published()


def recipe_class(name: str) -> type[Recipe]:
    """The class of a recipe.

    Args:
        name: name of a built-in recipe, or `package.module:Name` for another.

    Raises:
        SpecError: unknown name, or the imported object is no recipe.
    """
    if is_import_path(name):
        return import_class(name, (Recipe,), "recipe")
    if name not in RECIPES:
        fix = f"{suggest(name, RECIPES)} Your own: package.module:Name."
        raise SpecError("a known recipe", given=repr(name), where="recipe", fix=fix)
    return RECIPES[name]


def recipe_name(recipe: Recipe) -> str:
    """Name under which `recipe_class` finds the recipe's class."""
    return next((name for name, cls in RECIPES.items() if type(recipe) is cls), import_path_of(type(recipe)))


def describe_all() -> list[dict[str, Any]]:
    """Name, summary and teacher requirement of every recipe."""
    return [{"name": name, "summary": _summary(cls), "needs_teacher": cls().needs_teacher} for name, cls in RECIPES.items()]


def describe(name: str) -> dict[str, Any]:
    """Every option of the recipe `name` with its type, range, default and meaning.

    Raises:
        SpecError: unknown name.
    """
    cls: Any = recipe_class(name)
    default = cls()
    meanings, allowed = _meanings(cls), constraints(cls)
    options = [
        {
            "name": field.name,
            "type": allowed[field.name].type_text(),
            "range": allowed[field.name].range_text(),
            "default": encode(getattr(default, field.name)),
            "meaning": meanings.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
    ]
    return {"name": name, "summary": _summary(cls), "options": options}


def _summary(cls: type[Any]) -> str:
    """First paragraph of the docstring: the module's for built-in recipes, which have one module each, else the class's."""
    documented = inspect.getmodule(cls) if cls in RECIPES.values() else cls
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def _meanings(cls: type[Any]) -> dict[str, str]:
    """Entries of the class docstring's Args section by option; one entry may explain several."""
    text = (inspect.getdoc(cls) or "").partition("Args:")[2]
    entries = re.findall(r"^ {2,4}([a-z_, ]+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE)
    return {name.strip(): " ".join(meaning.split()) for names, meaning in entries for name in names.split(",")}
