"""Import paths of objects: `package.module:Name`.

They name user-defined recipes, quantizers, losses, models and tasks in run files, on the command line and in recipe.yaml.
Importing one runs the code of its module, like `python -m`, so only user input may contain them: nothing in an artifact is
imported when it is loaded.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from bitstill.errors import SpecError, suggest, without_torch

_WORD = r"[^\W\d]\w*"
_PATH = re.compile(rf"{_WORD}(\.{_WORD})*:{_WORD}(\.{_WORD})*")


def is_import_path(name: object) -> bool:
    """Whether `name` has the form `package.module:Name`."""
    return isinstance(name, str) and _PATH.fullmatch(name) is not None


def import_object(path: str, where: str) -> Any:
    """Import the object at `package.module:Name`. The current directory is searched first, as by `python -m`.

    Args:
        path: an import path.
        where: the setting that contains it, for errors.

    Raises:
        SpecError: there is no such module or name, or the module cannot be imported.
    """
    module_name, _, name = path.partition(":")
    value: Any = _import_module(module_name, where)
    for part in name.split("."):
        if not hasattr(value, part):
            names = (name for name in vars(value) if not name.startswith("_"))
            raise SpecError(f"a name in {module_name}", given=repr(part), where=where, fix=suggest(part, names))
        value = getattr(value, part)
    return value


def import_class(path: str, contracts: Sequence[type[Any]], where: str) -> type[Any]:
    """Import the dataclass at `package.module:Name`, which must fulfil one of `contracts`.

    Raises:
        SpecError: as for `import_object`; or the object is no class, fulfils no contract or is no dataclass.
    """
    cls, names = import_object(path, where), " or ".join(map(_with_article, contracts))
    if not isinstance(cls, type):
        raise SpecError(f"the class of {names}", given=f"{path!r}, which is none", where=where, fix="Name its class.")
    failures = [unmet(cls, contract) for contract in contracts]
    if all(failures):
        fix = f"Its members are those of {import_path_of(contracts[0]).replace(':', '.')}."
        raise SpecError(names, given=f"{path!r}, {failures[0]}", where=where, fix=fix)
    if not is_dataclass(cls):
        fix = "Add @dataclass(frozen=True), so that its settings can be written down and read again."
        raise SpecError(f"{names} that is a dataclass", given=repr(path), where=where, fix=fix)
    return cls


def _import_module(name: str, where: str) -> Any:
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            fix = "Run from the folder that holds it, or install its package."
            raise SpecError("a module", given=f"none called {error.name!r}", where=where, fix=fix) from None
        raise without_torch(error, name) or _broken(name, error, where) from error
    except Exception as error:
        raise _broken(name, error, where) from error


def _broken(name: str, error: Exception, where: str) -> SpecError:
    line = f", line {error.__traceback__.tb_lineno}" if error.__traceback__ else ""
    given = f"{type(error).__name__}: {error}{line if isinstance(error, SyntaxError) else ''}"
    return SpecError(f"a module {name!r} that can be imported", given=given, where=where, fix="Correct the module.")


def import_path_of(cls: type[Any]) -> str:
    """Import path of a class."""
    module = sys.modules.get(cls.__module__)
    spec = getattr(module, "__spec__", None)
    return f"{spec.name if cls.__module__ == '__main__' and spec else cls.__module__}:{cls.__qualname__}"


def is_contract(annotation: object) -> bool:
    """Whether an annotation is an abstract class or a protocol, which any class may fulfil."""
    return isinstance(annotation, type) and (_is_protocol(annotation) or inspect.isabstract(annotation))


def unmet(cls: type[Any], contract: type[Any]) -> str:
    """Reason why a class does not fulfil a contract, as the end of a sentence; empty if it does."""
    if not _is_protocol(contract) and not issubclass(cls, contract):
        return f"which is not derived from {contract.__name__}"
    inherited = {name for base in cls.__mro__ if base is not object for name in _declared(base)}
    members = [name for base in reversed(contract.__mro__) for name in _declared(base) if _is_public(name)]
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    lacking = [name for name in dict.fromkeys(members) if name not in inherited or name in abstract]
    return f"without {', '.join(lacking)}" if lacking else ""


def _with_article(cls: type[Any]) -> str:
    return f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}"


def _is_protocol(cls: type[Any]) -> bool:
    return bool(vars(cls).get("_is_protocol", False))


def _declared(cls: type[Any]) -> list[str]:
    """Names of attributes, methods and annotations of a class, without those of every class."""
    if cls.__module__ in ("builtins", "typing", "abc"):
        return []
    return [*vars(cls).get("__annotations__", {}), *vars(cls)]


def _is_public(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")
