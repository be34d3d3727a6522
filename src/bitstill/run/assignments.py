"""`--set KEY=VALUE`: any setting of a run by its place, down to a field of a field or an element of a list.

--set kd_weight=0.9                        an option of the recipe
--set settings.device=cpu                  a setting of the run; likewise storage. and text.
--set class_weights=balanced               another key of the run file, unless the recipe has an option of that name
--set granularity.size=64                  one field; the others stay as they are by default
--set "input={kind: QuantizeInput}"        a whole value, in YAML
--set layers.0=2                           one element of a list; the number after the last appends one
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import yaml

from bitstill.decode import encode
from bitstill.errors import SpecError, brief, one_line

OPTIONS = "options"
"""The section of a run file that holds the options of the recipe."""


Defaults = Mapping[str, Mapping[str, Any]]
"""By section of a run file, the plain values of what it does not say."""


def assign(content: dict[str, Any], assignment: str, defaults: Defaults) -> None:
    """Carry out an assignment on the content of a run file.

    Args:
        content: changed in place.
        assignment: "KEY=VALUE" with a YAML value; a key without the name of a section is an option of the recipe.
        defaults: of every section.

    Raises:
        SpecError: it has another form, or names a place that cannot be.
    """
    key, sign, text = assignment.partition("=")
    if not sign or not key:
        raise SpecError("KEY=VALUE", given=repr(assignment), where="--set", fix="For example: --set kd_weight=0.9.")
    place = key if key.partition(".")[0] in defaults else f"{OPTIONS}.{key}"
    put(content, place, parse_yaml(text, f"--set {key}"), defaults)


def put(content: dict[str, Any], key: str, value: Any, defaults: Defaults) -> None:
    """Set the dotted `key` of the content of a run file to a plain value.

    Raises:
        SpecError: there can be no such place.
    """
    section, *rest = key.split(".")
    if not rest:
        content[section] = value
        return
    if content.get(section) is None:
        content[section] = {}
    if not isinstance(content[section], dict):
        raise SpecError("a section with settings", given=brief(content[section]), where=section, fix="Correct the run file.")
    _put(content[section], rest, value, defaults[section], key)


def field_defaults(cls: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass as plain values; fields without one are left out."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    made = {f.name: f.default_factory() for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING}
    return {name: encode(value) for name, value in (defaults | made).items() if value is not dataclasses.MISSING}


def parse_yaml(text: str, where: str) -> Any:
    """Plain values in YAML.

    Raises:
        SpecError: it is no YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also impossible dates, endless digits and deep nesting
        raise SpecError("valid YAML", given=one_line(error), where=where, fix="Correct it.") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader, which also reads 1e-4 as a number: YAML 1.1 wants 1.0e-4, and nobody writes that."""


_SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))


def _put(place: Any, keys: list[str], value: Any, default: Any, where: str) -> None:
    """Set `place[keys[0]][keys[1]]...`; what is not there yet starts as it is in `default`."""
    first, *rest = keys
    fallback = default.get(first) if isinstance(default, Mapping) else None
    key: Any = _index(place, first, where) if isinstance(place, list) else first
    if not rest:
        if first == "kind" and place.get("kind", value) != value:
            place.clear()  # settings of another class
        place[key] = value
        return
    child = place[key] if isinstance(place, list) else place.get(first, copy.deepcopy(fallback))
    if child is None:
        child = {}
    if not isinstance(child, (dict, list)):
        fix = f"Give it whole, for example --set {first}='{{...}}'."
        raise SpecError("a setting with fields", given=brief(child), where=where, fix=fix)
    place[key] = child
    _put(child, rest, value, fallback, where)


def _index(elements: list[Any], text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) > len(elements):
        fix = f"{len(elements)} appends one."
        raise SpecError(f"the number of an element from 0 to {len(elements)}", given=brief(text), where=where, fix=fix)
    if int(text) == len(elements):
        elements.append(None)
    return int(text)
