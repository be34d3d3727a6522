"""What each recipe is and which options it has, read from the recipes themselves."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from bitstill.decode import encode
from bitstill.recipes import RECIPES, recipe_class


def describe_all() -> list[dict[str, Any]]:
    """Name, summary and teacher requirement of every recipe."""
    return [
        {"name": name, "summary": _summary(cls), "needs_teacher": cls().needs_teacher} for name, cls in sorted(RECIPES.items())
    ]


def describe(name: str) -> dict[str, Any]:
    """Every option of the recipe `name` with its type, default and meaning.

    Raises:
        SpecError: unknown name.
    """
    cls = recipe_class(name)
    default = cls()
    meanings = _meanings(cls)
    options = [
        {
            "name": field.name,
            "type": str(field.type),
            "default": encode(getattr(default, field.name)),
            "meaning": meanings.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
    ]
    return {"name": name, "summary": _summary(cls), "options": options}


def _summary(cls: type[Any]) -> str:
    module = inspect.getmodule(cls)
    return " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())


def _meanings(cls: type[Any]) -> dict[str, str]:
    """The lines of the class docstring's Args section, by option; one line may explain several."""
    text = (inspect.getdoc(cls) or "").partition("Args:")[2]
    entries = re.findall(r"^ {2,4}([a-z_, ]+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE)
    return {name.strip(): " ".join(meaning.split()) for names, meaning in entries for name in names.split(",")}
