"""Frozen dataclasses to plain JSON/YAML values and back, strictly.

A recipe file is the same dataclasses that Python users write. Where a field may be one of several dataclasses, the value
carries its class name under `kind`. Unknown keys, missing keys and values of the wrong type are errors that name the place
and the nearest valid spelling; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from bitstill.errors import SpecError, suggest

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` as plain dicts, lists, strings, numbers and None; every dataclass carries its `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise SpecError("plain data", given=type(value).__name__, where="encode", fix="Recipes hold dataclasses, numbers and text.")


def decode(wanted: type[T], value: object, where: str = "") -> T:
    """Build a `wanted` from plain values.

    Args:
        wanted: a dataclass, or any annotation its fields use.
        value: what `encode` returned or YAML gave.
        where: the place, for messages.

    Raises:
        SpecError: unknown or missing key, wrong type, unknown `kind`, or whatever the dataclass itself refuses.
    """
    result: T = _decode(wanted, value, where or getattr(wanted, "__name__", "value"))
    return result


def _decode(wanted: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin is Literal:
        if value in arguments and not (isinstance(value, bool) and True not in arguments):
            return value
        raise _wrong(f"one of {', '.join(map(repr, arguments))}", value, where)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if inspect.isabstract(wanted):
        return _decode_union(tuple(_methods_of(wanted)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong("a list", value, where)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(wanted):
        return _decode_dataclass(wanted, value, where)
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if wanted is not None and isinstance(wanted, type) and type(value) is wanted:
        return value
    raise _wrong(f"a value of type {getattr(wanted, '__name__', wanted)}", value, where)


def _methods_of(base: type) -> list[type]:
    """The dataclasses derived from an abstract one, as far as they have been imported."""
    derived: list[type] = base.__subclasses__()
    return [cls for cls in derived if dataclasses.is_dataclass(cls)] + [leaf for cls in derived for leaf in _methods_of(cls)]


def _decode_union(options: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    classes = {cls.__name__: cls for cls in options if dataclasses.is_dataclass(cls) and isinstance(cls, type)}
    if isinstance(value, Mapping) and classes:
        if "kind" not in value and len(classes) > 1:
            raise SpecError(
                "a key 'kind'",
                given=f"keys {sorted(map(str, value))}",
                where=where,
                fix=f"Valid: {', '.join(sorted(classes))}.",
            )
        kind = str(value.get("kind", next(iter(classes))))
        if kind not in classes:
            raise SpecError("a known kind", given=repr(kind), where=where, fix=suggest(kind, classes))
        return _decode_dataclass(classes[kind], value, where)
    errors = []
    for option in options:
        try:
            return _decode(option, value, where)
        except SpecError as error:
            errors.append(error.wanted)
    raise _wrong(" or ".join(dict.fromkeys(errors)), value, where)


def _decode_dataclass(cls: Any, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(f"the settings of {cls.__name__}", value, where)
    annotations = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    given = {str(key): item for key, item in value.items() if key != "kind"}
    if "kind" in value and value["kind"] != cls.__name__:
        raise SpecError(f"kind {cls.__name__}", given=repr(value["kind"]), where=where, fix="Remove `kind` or correct it.")
    for key in given:
        if key not in fields:
            raise SpecError("a known setting", given=repr(key), where=where, fix=suggest(key, fields))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise SpecError(f"the setting {name!r}", given="nothing", where=where, fix=f"Add it to {cls.__name__}.")
    return cls(**{key: _decode(annotations[key], item, f"{where}.{key}") for key, item in given.items()})


def _wrong(wanted: str, value: object, where: str) -> SpecError:
    return SpecError(wanted, given=f"{value!r} ({type(value).__name__})", where=where, fix="Correct the value.")
