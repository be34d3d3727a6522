"""Frozen dataclasses to plain JSON/YAML values and back, strictly.

A recipe file is the same dataclasses that Python users write. Where a field may be one of several dataclasses, the value
carries its class under `kind`: those of bitstill by name, others as `package.module:Name`. Where the field's type is a contract
(an abstract class or a protocol, such as `Quantizer`), any dataclass that fulfils it will do. Unknown keys, missing keys and
values of the wrong type are errors that name the place and the nearest valid spelling; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from bitstill.constraints import check_field
from bitstill.errors import SpecError, brief, suggest
from bitstill.import_path import import_class, import_path_of, is_contract, is_import_path, unmet

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` as plain dicts, lists, strings, numbers and None; every dataclass carries its `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return {"kind": kind_of(type(value)), **fields}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise SpecError("plain data", given=type(value).__name__, where="encode", fix="Recipes hold dataclasses, numbers and text.")


def kind_of(cls: type[Any]) -> str:
    """The `kind` of a dataclass: its name if it is one of bitstill's, else the path to import it by."""
    return cls.__name__ if cls.__module__.partition(".")[0] == "bitstill" else import_path_of(cls)


def decode(target: type[T], value: object, where: str = "", *, imports: bool = False) -> T:
    """Build a `target` from plain values.

    Args:
        target: a dataclass, or any annotation its fields use.
        value: what `encode` returned or YAML gave.
        where: the place, for messages.
        imports: whether a `kind` may be an import path, whose module is run. Only what a user wrote may have that.

    Raises:
        SpecError: unknown or missing key, wrong type, unknown `kind`, or whatever the dataclass itself refuses.
    """
    result: T = _decode(target, value, where or getattr(target, "__name__", "value"), imports)
    return result


def _decode(target: Any, value: object, where: str, imports: bool) -> Any:
    origin, arguments = typing.get_origin(target), typing.get_args(target)
    if target is Any:
        return value
    if origin is Literal:
        if value in arguments and not (isinstance(value, bool) and True not in arguments):
            return value
        raise _wrong(f"one of {', '.join(map(repr, arguments))}", value, where)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where, imports)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong("a list", value, where)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]", imports) for index, item in enumerate(value))
    if dataclasses.is_dataclass(target):
        return _decode_dataclass(target, value, where, imports)
    if is_contract(target):
        return _decode_union((target,), value, where, imports)
    if target is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _as_float(value)
    if target is not None and isinstance(target, type) and type(value) is target:
        return value
    raise _wrong(f"a value of type {getattr(target, '__name__', target)}", value, where)


def _decode_union(options: tuple[Any, ...], value: object, where: str, imports: bool) -> Any:
    if value is None and type(None) in options:
        return None
    classes = [cls for cls in options if dataclasses.is_dataclass(cls) and isinstance(cls, type)]
    contracts = [cls for cls in options if cls not in classes and is_contract(cls)]
    if isinstance(value, Mapping) and (classes or contracts):
        cls = _class_of(value, classes, contracts, where, imports)
        return _decode_dataclass(cls, value, where, imports)
    errors = [f"the settings of {contract.__name__}" for contract in contracts]
    for option in options:
        if option in contracts:
            continue
        try:
            return _decode(option, value, where, imports)
        except SpecError as error:
            errors.append(error.wanted)
    raise _wrong(" or ".join(dict.fromkeys(errors)), value, where)


def _class_of(
    value: Mapping[Any, Any], classes: list[type[Any]], contracts: list[type[Any]], where: str, imports: bool
) -> type[Any]:
    """The dataclass that the `kind` of `value` names: one of `classes`, or one that fulfils one of `contracts`."""
    if "kind" not in value and len(classes) == 1 and not contracts:
        return classes[0]
    known = {name: cls for cls in classes for name in (cls.__name__, kind_of(cls))}
    if "kind" in value and (kind := str(value["kind"])) in known:
        return known[kind]
    if "kind" in value and is_import_path(value["kind"]) and contracts:
        if not imports:
            fix = "Only run files, command lines and Python code may name classes to import."
            raise SpecError("a kind of bitstill's own", given=repr(value["kind"]), where=where, fix=fix)
        return import_class(value["kind"], contracts, where)
    short = {cls.__name__: cls for cls in classes} | {name: cls for each in contracts for name, cls in own_kinds(each).items()}
    if "kind" not in value:
        fix = f"Valid: {', '.join(sorted(short))}{', or package.module:Name' if contracts else ''}."
        raise SpecError("a key 'kind'", given=f"keys {sorted(map(str, value))}", where=where, fix=fix)
    if kind not in short:
        raise SpecError("a known kind", given=brief(value["kind"]), where=where, fix=suggest(kind, short))
    return short[kind]


def own_kinds(contract: type[Any]) -> dict[str, type[Any]]:
    """Dataclasses that fulfil a contract among the public names of the package that defines it."""
    package = importlib.import_module(contract.__module__.rpartition(".")[0] or contract.__module__)
    public = {name: getattr(package, name) for name in getattr(package, "__all__", ())}
    return {
        name: cls
        for name, cls in public.items()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and not unmet(cls, contract)
    }


def _decode_dataclass(cls: Any, value: object, where: str, imports: bool) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(f"the settings of {cls.__name__}", value, where)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    settings = {str(key): item for key, item in value.items() if key != "kind"}
    if "kind" in value and value["kind"] not in (cls.__name__, kind_of(cls)):
        raise SpecError(f"kind {cls.__name__}", given=brief(value["kind"]), where=where, fix="Remove `kind` or correct it.")
    for key in settings:
        if key not in fields:
            raise SpecError("a known setting", given=brief(key), where=where, fix=suggest(key, fields))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in settings:
            raise SpecError(f"the setting {name!r}", given="nothing", where=where, fix=f"Add it to {cls.__name__}.")
    annotations = _annotations(cls, where)
    decoded = {key: _decode(annotations[key], item, f"{where}.{key}", imports) for key, item in settings.items()}
    for key, item in decoded.items():
        check_field(cls, key, item, f"{where}.{key}")
    return cls(**decoded)


def _annotations(cls: type[Any], where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        fix = "Import it outside of TYPE_CHECKING."
        raise SpecError(f"types of {cls.__name__} that are there at run time", given=str(error), where=where, fix=fix) from None


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond all floats
        return math.inf if number > 0 else -math.inf


def _wrong(expected: str, value: object, where: str) -> SpecError:
    return SpecError(expected, given=f"{brief(value)} ({type(value).__name__})", where=where, fix="Correct the value.")
