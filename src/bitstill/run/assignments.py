"""`--set KEY=VALUE`: any setting of a run by its dotted key, down to nested fields and list elements.

--set kd_weight=0.9                        an option of the recipe
--set settings.device=cpu                  a setting of the run; likewise storage. and text.
--set class_weights=balanced               another key of the run file, unless the recipe has an option of that name
--set granularity.size=64                  one field; the others keep their defaults
--set "input={kind: QuantizeInput}"        a whole value, in YAML
--set layers.0=2                           one element of a list; the index after the last appends one
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.composer import ComposerError

from bitstill.decode import encode
from bitstill.errors import SpecError, brief, one_line

OPTIONS = "options"
"""Section of a run file with the options of the recipe."""

Defaults = Mapping[str, Mapping[str, Any]]
"""Plain default values by section of a run file."""


def assign(content: dict[str, Any], assignment: str, defaults: Defaults) -> None:
    """Apply an assignment to the content of a run file.

    Args:
        content: content of the run file, changed in place.
        assignment: "KEY=VALUE" with a YAML value; a key without a section's name is an option of the recipe.
        defaults: default values of every section.

    Raises:
        SpecError: the assignment has another form, or its key cannot exist.
    """
    key, sign, text = assignment.partition("=")
    if not sign or not key:
        raise SpecError("KEY=VALUE", given=repr(assignment), where="--set", fix="For example: --set kd_weight=0.9.")
    target = key if key.partition(".")[0] in defaults else f"{OPTIONS}.{key}"
    put(content, target, parse_yaml(text, f"--set {key}"), defaults)


def put(content: dict[str, Any], key: str, value: Any, defaults: Defaults) -> None:
    """Set the dotted `key` of the content of a run file to a plain value.

    Raises:
        SpecError: the key cannot exist.
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
    """Defaults of a dataclass as plain values; fields without a default are omitted."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    factory_defaults = {
        f.name: f.default_factory() for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING
    }
    return {name: encode(value) for name, value in (defaults | factory_defaults).items() if value is not dataclasses.MISSING}


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML into plain values.

    Raises:
        SpecError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also impossible dates, endless digits and deep nesting
        raise SpecError("valid YAML", given=one_line(error), where=where, fix="Correct it.") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader that also reads 1e-4 as a number, where YAML 1.1 requires 1.0e-4.

    Aliases are refused: with them, a few lines can stand for billions of values.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node.

        Raises:
            ComposerError: it is an alias.
        """
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, "an alias (*name): write the value out", mark)
        return super().compose_node(parent, index)


_SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))


def _put(container: Any, keys: list[str], value: Any, default: Any, where: str) -> None:
    """Set `place[keys[0]][keys[1]]...`; a missing level starts as a copy of `default`."""
    first, *rest = keys
    fallback = default.get(first) if isinstance(default, Mapping) else None
    key: Any = _index(container, first, where) if isinstance(container, list) else first
    if not rest:
        if first == "kind" and container.get("kind", value) != value:
            container.clear()  # settings of another class
        container[key] = value
        return
    child = container[key] if isinstance(container, list) else container.get(first, copy.deepcopy(fallback))
    if child is None:
        child = {}
    if not isinstance(child, (dict, list)):
        fix = f"Set it as a whole, for example --set {first}='{{...}}'."
        raise SpecError("a setting with fields", given=brief(child), where=where, fix=fix)
    container[key] = child
    _put(child, rest, value, fallback, where)


def _index(elements: list[Any], text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) > len(elements):
        fix = f"{len(elements)} appends one."
        raise SpecError(f"the index of an element from 0 to {len(elements)}", given=brief(text), where=where, fix=fix)
    if int(text) == len(elements):
        elements.append(None)
    return int(text)
