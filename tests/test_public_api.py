"""Public names: each in one list, loaded on first use, typed for every user of bitstill."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bitstill
from bitstill._lazy import public_names
from bitstill.cli.main import app

PACKAGES = ("bitstill", *(f"bitstill.{name}" for name in ("data", "losses", "quant", "recipes", "train")))
NAMES = [(package, name) for package in PACKAGES for name in public_names(importlib.import_module(package).__file__)]
LIGHT = "import sys, {0}; print(sorted({{'torch', 'numpy', 'transformers'}} & set(sys.modules)))"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_stub_holds_imports_under_their_own_names_and_nothing_else(package):
    """Otherwise a type checker would see a name that does not exist at run time, or miss one that does."""
    stub = Path(importlib.import_module(package).__file__).with_suffix(".pyi")
    docstring, *imports = ast.parse(stub.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    for node in imports:
        assert isinstance(node, ast.ImportFrom) and not node.level, ast.dump(node)
        for alias in node.names:
            assert alias.asname == alias.name


@pytest.mark.parametrize("package", PACKAGES)
def test_all_and_dir_list_what_the_stub_lists(package):
    module = importlib.import_module(package)
    assert module.__all__ == dir(module) == sorted(public_names(module.__file__))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_the_object_at_its_origin(package):
    module = importlib.import_module(package)
    for name, (origin, attribute) in public_names(module.__file__).items():
        value = getattr(module, name)
        assert value is getattr(importlib.import_module(origin), attribute), name
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__name__ == name and value.__doc__, f"{name}: public names are documented"
    assert origin == package or not package.startswith("bitstill.") or _height(origin) <= _height(package)


def _height(module: str) -> int:
    from tests.test_imports import FOLDERS

    folder = module.split(".")[1]
    return FOLDERS.index(folder) if folder in FOLDERS else -1


def test_no_name_is_public_twice():
    places: dict[str, set[str]] = {}
    for package, name in NAMES:
        places.setdefault(name, set()).add(package)
    assert not {name: packages for name, packages in places.items() if len(packages) > 1}


def test_the_command_line_has_the_verbs_of_the_library():
    commands = {command.callback.__name__ for command in app.registered_commands} - {"recipes"}
    for command in commands:
        assert inspect.isfunction(getattr(bitstill, command)), command


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'bitstill' has no attribute 'comress'"):
        bitstill.comress  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Binry'"):
        from bitstill.quant import Binry  # noqa: F401


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_neither_torch_nor_numpy(package):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(package)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_that_need_torch_say_so_where_it_is_missing():
    code = (
        "import sys; sys.modules['torch'] = None\nimport bitstill\n"
        "bitstill.quant.PerGroup(4), bitstill.read, bitstill.inspect\n"
        "try:\n    bitstill.train.Stage\nexcept bitstill.BitstillError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("bitstill.train.Stage: wanted torch, got no package 'torch'. Install it with: pip install")


@pytest.mark.slow
def test_type_checkers_see_the_names(tmp_path):
    """What py.typed gives a user of mypy --strict: types of package attributes, and errors for missing names."""
    script = tmp_path / "user.py"
    script.write_text(
        "import bitstill\n"
        "from bitstill.quant import Binary\n"
        "reveal_type(bitstill.quant.PerGroup(128).size)\n"
        "reveal_type(Binary().learned_scale)\n"
        "reveal_type(bitstill.__version__)\n"
        "bitstill.comress\n"
        "bitstill.train.Stge\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", tmp_path / "cache", script]
    done = subprocess.run([*map(str, command), "--follow-imports=silent"], capture_output=True, text=True, cwd=tmp_path)
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert lines[:3] == [f'note: Revealed type is "{kind}"' for kind in ("int", "bool", "str")]
    assert len(lines) == 5
    for line, name in zip(lines[3:], ("comress", "Stge"), strict=True):
        assert line.startswith(f'error: Module has no attribute "{name}"')


def test_the_version_is_the_one_that_is_installed():
    from importlib import metadata

    assert bitstill.__version__ == metadata.version("bitstill")
