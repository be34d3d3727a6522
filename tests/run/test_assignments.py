"""`--set` reaches every field of every recipe and of all settings, whole or in parts, and recipe.yaml records the same."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, Union

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitstill import Storage
from bitstill.data import TextOptions
from bitstill.decode import encode, own_kinds
from bitstill.errors import BitstillError, SpecError
from bitstill.import_path import is_contract
from bitstill.recipes.by_name import RECIPES
from bitstill.run.assignments import field_defaults, parse_yaml
from bitstill.run.run_file import read_run
from bitstill.train import Settings

SECTIONS = {"settings": Settings, "storage": Storage, "text": TextOptions}
FIELDS = [(name, field.name) for name, cls in (RECIPES | SECTIONS).items() for field in dataclasses.fields(cls)]
PLAIN = {
    bool: st.booleans(),
    int: st.integers(0, 12),
    float: st.sampled_from([0.0, 1e-4, 0.25, 0.5, 1.0, 2.0, 3.0]),
    str: st.sampled_from(["a", "column", "1", "true", "null", "x: y", "[z]"]),
    type(None): st.none(),
}


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values for a field of this type, including valid ones."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in PLAIN:
        return PLAIN[annotation]
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if is_contract(annotation):
        return st.one_of(*map(values, own_kinds(annotation).values()))
    annotations = typing.get_type_hints(annotation)
    fields = st.fixed_dictionaries({field.name: values(annotations[field.name]) for field in dataclasses.fields(annotation)})
    return fields.map(lambda chosen: valid(annotation, chosen)).filter(lambda value: value is not None)


def valid(cls: Any, settings: dict[str, Any]) -> Any:
    """The dataclass, or None if it refuses its settings."""
    try:
        return cls(**settings)
    except BitstillError:
        return None


def parts(key: str, plain: Any) -> list[tuple[str, Any]]:
    """A plain value as single assignments: kinds before settings, empty lists before their items."""
    if isinstance(plain, dict):
        ordered = sorted(plain.items(), key=lambda item: item[0] != "kind")
        return [part for name, value in ordered for part in parts(f"{key}.{name}", value)]
    if isinstance(plain, list):
        return [(key, []), *(part for index, value in enumerate(plain) for part in parts(f"{key}.{index}", value))]
    return [(key, plain)]


def read(name: str, assignments: list[tuple[str, Any]]) -> tuple[Any, str]:
    """The recipe or section `name` of a run file with these assignments, and its text."""
    recipe = name if name in RECIPES else "post-training"
    texts = [f"{key}={json.dumps(value)}" for key, value in assignments]
    run = read_run(None, {"recipe": recipe, "task": "digits"}, texts)
    return run.build_recipe() if name in RECIPES else getattr(run, name), run.to_yaml()


def reread(name: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("run") / "recipe.yaml"
    path.write_text(text)
    run = read_run(path, {})
    return run.build_recipe() if name in RECIPES else getattr(run, name)


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=map("{0[0]}-{0[1]}".format, FIELDS))
@settings(max_examples=12)
@given(data=st.data())
def test_a_field_is_set_whole_and_part_by_part(tmp_path_factory, name, field, data):
    cls = (RECIPES | SECTIONS)[name]
    value = data.draw(values(typing.get_type_hints(cls)[field]))
    expected = valid(cls, {field: value})
    assume(expected is not None)
    key, plain = (field if name in RECIPES else f"{name}.{field}"), encode(value)
    for assignments in ([(key, plain)], parts(key, plain)):
        built, text = read(name, assignments)
        assert built == expected
        assert reread(name, text, tmp_path_factory) == expected


def test_a_part_is_set_and_the_others_stay_as_the_recipe_has_them():
    recipe, _ = read("quantized-distillation", [("granularity.size", 64)])
    assert recipe.granularity == dataclasses.replace(RECIPES["quantized-distillation"]().granularity, size=64)
    recipe, _ = read("binarybert", [("input.bits", 4)])
    assert recipe.input == dataclasses.replace(RECIPES["binarybert"]().input, bits=4)


def test_keys_of_the_run_file_are_reached_where_the_recipe_has_no_such_option():
    run = read_run(None, {"recipe": "quantized-distillation", "task": "digits"}, ["class_weights=balanced", "out=there"])
    assert (run.class_weights, run.out, run.options) == ("balanced", "there", {})
    run = read_run(None, {"recipe": "differentiable-quantization", "task": "digits", "teacher": "net"}, ["teacher=self"])
    assert (run.teacher, run.build_recipe().teacher) == ("net", "self")


def test_another_kind_does_not_inherit_settings():
    recipe, _ = read("quantized-distillation", [("granularity.kind", "PerTensor")])
    assert type(recipe.granularity).__name__ == "PerTensor"


def test_the_number_after_the_last_appends_an_element():
    recipe, _ = read("xtc", [("progressive", [8]), ("progressive.1", 2), ("progressive.0", 4)])
    assert recipe.progressive == (4, 2)


@pytest.mark.parametrize(("assignment", "message"), [
    ("bits", "--set: wanted KEY=VALUE, got 'bits'"),
    ("=3", "--set: wanted KEY=VALUE, got '=3'"),
    ("bits=[", "--set bits: wanted valid YAML"),
    ("bots=3", "wanted a known setting, got 'bots'. Did you mean 'bits'"),
    ("bits.deep=3", "options.bits.deep: wanted a setting with fields, got 4. Set it as a whole"),
    ("granularity.sise=3", "granularity: wanted a known setting, got 'sise'. Did you mean 'size'"),
    ("settings.sed=1", "settings: wanted a known setting, got 'sed'. Did you mean 'seed'"),
    ("pairs.1.student=a", "options.pairs.1.student: wanted the index of an element from 0 to 0, got '1'"),
    ("pairs.first=a", "wanted the index of an element from 0 to 0, got 'first'"),
    ("storage=3", "run.storage: wanted the settings of Storage, got 3"),
])  # fmt: skip
def test_every_mistake_names_its_place(assignment, message):
    with pytest.raises(SpecError, match=message):
        read_run(None, {"recipe": "quantized-distillation", "task": "digits"}, [assignment]).build_recipe()


def test_fields_without_a_default_are_left_out():
    @dataclasses.dataclass(frozen=True)
    class Some:
        needed: int
        given: float = 0.5
        made: Settings = dataclasses.field(default_factory=Settings)

    assert field_defaults(Some) == {"given": 0.5, "made": encode(Settings())}


def test_aliases_are_refused_since_few_of_them_stand_for_billions_of_values() -> None:
    layers = [f"{chr(97 + n)}: &{chr(97 + n)} [{', '.join([f'*{chr(96 + n)}'] * 9) if n else '1'}]" for n in range(12)]
    with pytest.raises(SpecError, match=r"run\.yaml: wanted valid YAML, got .*alias.*write the value out"):
        parse_yaml("\n".join(layers), "run.yaml")
