"""Lazy public names of a package, imported when first used (PEP 562).

A package lists its public names once, as `from module import Name as Name` in the `__init__.pyi` next to its `__init__.py`.
Type checkers and editors read that stub; at run time `attach` reads the same lines, so that importing a package is cheap until
one of its names is used: reading an artifact never imports torch.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bitstill.errors import without_torch


class Origin(NamedTuple):
    """Module that defines a public name, and its name there; a submodule is defined by its package."""

    module: str
    name: str


def public_names(package_file: str | Path) -> dict[str, Origin]:
    """Origins of the public names in the stub next to a package's `__init__.py`."""
    stub = Path(package_file).with_suffix(".pyi")
    imports = [node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: Origin(str(node.module), alias.name) for node in imports for alias in node.names if alias.asname}


def attach(package: str, package_file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, from its stub.

    Args:
        package: its `__name__`.
        package_file: its `__file__`.
    """
    origins = public_names(package_file)
    names = sorted(origins)

    def load(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = origins[name]
        try:
            if module == package:
                return importlib.import_module(f"{package}.{attribute}")
            value = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise without_torch(error, f"{package}.{name}") or error from None
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: list(names), names
