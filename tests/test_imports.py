"""The layers of docs/design.md, checked on the source: imports point upwards only, at any depth of a file."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import bitstill

ROOT = Path(bitstill.__file__).parent
GROUND = ("errors", "decode", "schedules", "constraints", "rng", "import_path", "_lazy", "_version")
"""Loose modules: only Python and numpy."""
FOLDERS = (
    "quant", "artifact", "model", "losses", "data", "program", "train", "recipes", "exporters", "runtime", "hf", "report",
    "deliver", "run", "cli",
)  # fmt: skip
"""Bottom to top: a folder imports only from those before it."""
TORCH_FREE_FOLDERS = ("artifact", "program", "exporters", "runtime")
TORCH_FREE = (*GROUND, "quant.granularity", "quant.layouts", "deliver.inspect")
OPTIONAL = {
    "PIL", "datasets", "gguf", "jinja2", "matplotlib", "onnx", "onnxruntime", "openvino", "sklearn", "tensorboard",
    "torch_pruning", "transformers", "triton",
}  # fmt: skip
REQUIRED = {
    "accelerate",
    "filelock",
    "huggingface_hub",
    "numpy",
    "yaml",
    "rich",
    "safetensors",
    "torch",
    "tqdm",
    "typer",
    "zstandard",
}


def _modules() -> dict[str, Path]:
    """Every module by its name below the package ("quant.uniform"), without the package itself."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            modules[name] = path
    return modules


MODULES = _modules()


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


@functools.cache
def imports(path: Path, *, top_level: bool = False) -> frozenset[str]:
    """Modules imported by a file at run time ("torch.nn", "bitstill.quant.uniform"), without those under TYPE_CHECKING."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if _is_type_checking(node):
            return
        if top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            submodules = {
                alias.name for alias in node.names if f"{node.module}.{alias.name}".removeprefix("bitstill.") in MODULES
            }
            names.update(f"{node.module}.{name}" for name in submodules)
            if submodules != {alias.name for alias in node.names}:
                names.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(names)


def _packages(path: Path, *, top_level: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(path, top_level=top_level)}


def _own(path: Path, *, top_level: bool = False) -> set[str]:
    return {name.removeprefix("bitstill.") for name in imports(path, top_level=top_level) if name.startswith("bitstill.")}


def _folder(name: str) -> str:
    return name.split(".")[0]


def _height(name: str) -> int:
    return 0 if name in GROUND else 1 + FOLDERS.index(_folder(name))


def test_the_walk_sees_imports_at_every_depth(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import a.b\nfrom c import d\nfrom bitstill.quant import uniform\nif TYPE_CHECKING:\n    import e\n"
        "def f():\n    import g\n    class H:\n        from i import j\n"
    )
    assert imports(file) == {"a.b", "c", "bitstill.quant.uniform", "g", "i"}
    assert imports(file, top_level=True) == {"a.b", "c", "bitstill.quant.uniform"}


def test_no_module_sits_loose_beside_the_folders():
    assert {_folder(name) for name in MODULES} == {*GROUND, *FOLDERS}


def test_imports_point_upwards_only():
    wrong = [
        f"{name} imports {other}" for name, path in MODULES.items() for other in _own(path) if _height(other) > _height(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_folders_import_each_other_in_no_circle_and_modules_neither():
    """Folders cannot, since imports point upwards; within a folder, modules are sorted by their top-level imports."""
    above = {name: _own(path, top_level=True) & MODULES.keys() - {name} for name, path in MODULES.items()}
    while leaves := [name for name, others in above.items() if not others & above.keys()]:
        for name in leaves:
            del above[name]
    assert not above, f"a circle among {sorted(above)}"


def test_optional_packages_are_imported_where_they_are_used_and_all_are_declared():
    for name, path in MODULES.items():
        at_top = _packages(path, top_level=True) & OPTIONAL
        if _folder(name) == "hf":
            at_top -= {"transformers"}
        assert not at_top, f"{name}: import {sorted(at_top)} in the function that uses it"
        assert _packages(path) <= {*sys.stdlib_module_names, *REQUIRED, *OPTIONAL, "bitstill"}, name


def test_transformers_is_known_to_one_folder():
    """Code outside that folder imports its modules where they are used."""
    for name, path in MODULES.items():
        if _folder(name) != "hf":
            assert "transformers" not in _packages(path), name
            assert "hf" not in {_folder(other) for other in _own(path, top_level=True)}, name


def _closure(name: str) -> tuple[set[str], set[str]]:
    """Own modules that importing `name` runs, and the packages that these import."""
    pending, own, packages = [name], set(), set()
    while pending:
        current = pending.pop()
        if current in own or current not in MODULES:
            continue
        own.add(current)
        packages |= _packages(MODULES[current], top_level=True)
        pending += _own(MODULES[current], top_level=True)
        pending += [current.rpartition(".")[0]]
    return own, packages


def test_what_deploys_needs_no_torch_and_no_training_code():
    for name in MODULES:
        if name in TORCH_FREE or _folder(name) in TORCH_FREE_FOLDERS:
            _, packages = _closure(name)
            assert "torch" not in packages, f"{name} imports torch"
    for name in MODULES:
        if _folder(name) in TORCH_FREE_FOLDERS or name == "deliver.load":
            training = {other for other in _closure(name)[0] if _folder(other) in ("train", "recipes", "run")}
            assert not training, f"{name} imports {sorted(training)}"


def test_importing_bitstill_changes_no_import_machinery():
    code = (
        "import sys, torch, transformers.quantizers.auto\nbefore = [*sys.meta_path], [*sys.path_hooks]\n"
        "import bitstill, bitstill.hf\nassert ([*sys.meta_path], [*sys.path_hooks]) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
