"""The public names: complete, sorted, loaded when first used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bitstill


def test_all_is_sorted_and_complete():
    assert bitstill.__all__ == sorted(bitstill.__all__)
    assert len(set(bitstill.__all__)) == len(bitstill.__all__)
    assert set(bitstill.__all__) == {*bitstill._HOMES, "__version__"}
    assert dir(bitstill) == sorted(bitstill.__all__)


@pytest.mark.parametrize("name", bitstill.__all__)
def test_every_name_resolves_to_the_object_at_its_home(name):
    value = getattr(bitstill, name)
    if name != "__version__":
        assert value is getattr(importlib.import_module(bitstill._HOMES[name]), name)
        assert value.__name__ == name
        assert value.__doc__, "public names are documented"


def test_what_type_checkers_see_is_what_is_loaded():
    tree = ast.parse(Path(bitstill.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.asname or alias.name): node.module
        for node in ast.walk(guarded)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {**bitstill._HOMES, "__version__": "bitstill._version"}


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'comress'"):
        bitstill.comress  # noqa: B018


def test_importing_bitstill_alone_imports_no_torch():
    code = "import sys, bitstill; bitstill.__version__; print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_one_that_is_installed():
    from importlib import metadata

    assert bitstill.__version__ == metadata.version("bitstill")
