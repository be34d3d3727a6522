"""Output of `bitstill recipes` for newcomers, read from the recipes themselves."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bitstill.decode import encode
from bitstill.errors import SpecError
from bitstill.recipes.by_name import RECIPES, describe, describe_all


def test_every_recipe_is_listed_with_its_first_sentence():
    found = {row["name"]: row for row in describe_all()}
    assert set(found) == set(RECIPES)
    assert {name: row["needs_teacher"] for name, row in found.items()} == {
        "binarybert": True, "differentiable-quantization": True, "fine-tuning": False, "post-training": False, "pqk": False,
        "general-distillation": True, "quantized-distillation": True, "xtc": True,
    }  # fmt: skip
    assert "Polino" in found["quantized-distillation"]["summary"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_option_is_described_with_its_default_and_meaning(name):
    found = describe(name)
    json.dumps(found)
    fields = {field.name for field in dataclasses.fields(RECIPES[name])}
    assert {option["name"] for option in found["options"]} == fields
    assert {option["name"]: option["default"] for option in found["options"]} == {
        key: value for key, value in encode(RECIPES[name]()).items() if key != "kind"
    }
    missing = [option["name"] for option in found["options"] if len(option["meaning"]) < 8]
    assert not missing, "an option without a meaning in the class's docstring"
    assert not [o["name"] for o in found["options"] if o["meaning"].startswith("as `")], "a newcomer has not read the other"


def test_types_and_ranges_are_written_as_a_person_reads_them():
    options = {option["name"]: option for option in describe("xtc")["options"]}
    assert (options["lr"]["type"], options["lr"]["range"]) == ("float above 0", "above 0")
    assert options["logit_weight"]["range"] == "at least 0"
    assert options["bits"]["type"] == "int from 1 to 8, 'ternary' or None"
    assert options["progressive"]["type"] == "list of int from 1 to 8 or 'ternary'"
    assert (options["choice"]["type"], options["choice"]["range"]) == ("'skip', 'paper', 'top' or 'bottom'", "")
    assert options["input"]["type"] == "QuantizeInput or None"


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(SpecError, match=r"Did you mean 'post-training'\?"):
        describe("post-trainning")
