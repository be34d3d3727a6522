"""Any value that `--set` gives an option: the recipe decodes and encodes again, or a one-line error names the option."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from bitstill.artifact.writer import Storage
from bitstill.constraints import constraints
from bitstill.data.text import TextOptions
from bitstill.decode import encode
from bitstill.errors import SpecError
from bitstill.recipes.by_name import RECIPES
from bitstill.run.run_file import read_run
from bitstill.train.settings import Settings

VALUES = (
    "0", "-1", "1", "2.5", "-0.0", "1e300", "-1e300", "1e-300", "1e400", ".nan", ".inf", "-.inf", "9223372036854775808",
    "-9223372036854775809", "9" * 400, "9" * 5000, "true", "null", "''", "fast", "'1'", "[]", "[1]", "[.nan]", "[[1]]",
    "[-1, 1]", "{}", "{kind: 3}", "{kind: [1]}", "{kind: KL, temperature: 0}", "{1: 2}", "2001-01-01", "2001-99-99",
    "!!binary aGk=", "[1", "0x10", "~", "? [1]", "&a [*a]",
)  # fmt: skip
"""YAML text of each value."""


def dataclasses_in(hint: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from dataclasses_in(inner)


def keys(cls: Any, visited: set[Any]) -> Iterator[str]:
    """Options of a recipe, and the fields of the dataclasses they may hold, each class once."""
    if cls in visited:
        return
    visited.add(cls)
    hints = typing.get_type_hints(cls)
    for name in constraints(cls):
        yield name
        for inner in dataclasses_in(hints[name]):
            yield from (f"{name}.{key}" for key in keys(inner, visited))


def keys_by_recipe() -> dict[str, list[str]]:
    visited: set[Any] = set()
    return {recipe: list(keys(cls, visited)) for recipe, cls in sorted(RECIPES.items(), reverse=True)}


KEYS = keys_by_recipe()


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(item)


SECTIONS = {"settings": Settings, "storage": Storage, "text": TextOptions}
"""Sections of a run file besides the recipe's options."""


def written(recipe: str, key: str, value: str) -> str | dict[str, Any]:
    """The one-line error, or the run file with all options as recorded."""
    try:
        run = read_run(None, {"recipe": recipe, "task": "digits"}, [f"{key}={value}"])
        options = encode(run.build_recipe())
    except SpecError as error:
        return str(error)
    return {**encode(run), "options": options}


@pytest.mark.parametrize("recipe", KEYS)
def test_no_value_of_an_option_is_a_traceback(recipe: str) -> None:
    for key in KEYS[recipe]:
        for value in VALUES:
            outcome = written(recipe, key, value)
            if isinstance(outcome, str):
                assert "\n" not in outcome and len(outcome) < 1_000, (key, value, outcome)
                continue
            assert all(math.isfinite(number) for number in numbers_in(outcome)), (key, value)
            options = yaml.safe_load(yaml.safe_dump(outcome["options"]))
            again = read_run(None, {"recipe": recipe, "task": "digits", "options": options}).build_recipe()
            assert encode(again) == options


@pytest.mark.parametrize("section", SECTIONS)
def test_no_value_of_another_setting_is_a_traceback(section: str) -> None:
    for name in constraints(SECTIONS[section]):
        for value in VALUES:
            outcome = written("pqk", f"{section}.{name}", value)
            if isinstance(outcome, str):
                assert "\n" not in outcome and len(outcome) < 1_000, (name, value, outcome)
            else:
                assert all(math.isfinite(number) for number in numbers_in(outcome)), (name, value)


@pytest.mark.parametrize(
    ("recipe", "assignment", "message"),
    [
        ("xtc", "clip_norm=-1", r"options\.clip_norm: wanted clip_norm above 0, got -1\.0\. The default is 1\.0\."),
        ("xtc", "epochs=1e300", r"options\.epochs: wanted epochs from 0 to 1,000,000, got 1e\+300"),
        ("xtc", "steps=9223372036854775808", r"options\.steps: wanted steps from 1 to 1,000,000,000"),
        ("binarybert", "budget=.nan", r"options\.budget: wanted budget above 0, got nan"),
        ("pqk", "lr=0", r"options\.lr: wanted lr above 0, got 0"),
        ("pqk", "batch_size=true", r"options\.batch_size: wanted a value of type int, got True"),
        ("xtc", "hidden_weight=-0.5", r"options\.hidden_weight: wanted hidden_weight of at least 0"),
        ("xtc", "input.bits=1", r"options\.input\.bits: wanted bits from 2 to 8"),
        ("xtc", "lr=" + "[" * 600, "--set lr: wanted valid YAML, got RecursionError"),
        ("xtc", "progressive=[8, 9]", r"options\.progressive: wanted progressive from 1 to 8 or 'ternary', got \(8, 9\)"),
        ("binarybert", "general.corpus={source: x, length: 2}", r"options\.general\.corpus\.length: wanted length from 8 to"),
    ],
)
def test_the_message_names_the_option_and_its_range(recipe: str, assignment: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_run(None, {"recipe": recipe, "task": "digits"}, [assignment]).build_recipe()
