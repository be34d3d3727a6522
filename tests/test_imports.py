"""The direction of imports, held by walking the source: lower layers never import higher ones, at any depth of a file."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import bitstill

ROOT = Path(bitstill.__file__).parent
LAYERS: tuple[set[str], ...] = (
    {"errors", "schedules", "granularity", "keys", "_version", "_transformers", "decode"},
    {"ops"},
    {"quantizers", "specs", "nn"},
    {"surgery", "lifecycle"},
    {"distill", "train"},
    {"recipes"},
    {"architectures", "augmenting", "delivery", "finetuning", "general", "hf", "loading", "report", "roles", "runfile", "tasks"}
    | {
        "api",
        "bench",
        "bench_worker",
        "comparing",
        "demo",
        "demo_plans",
        "dry_run",
        "evaluate",
        "exporting",
        "hub",
        "inspecting",
        "native_layers",
        "parity",
    },
    {"cli"},
)
ARTIFACT_MAY_IMPORT = (
    "errors",
    "granularity",
    "keys",
    "ops",
    "nn",
    "quantizers",
    "specs",
    "surgery.swap",
    "_version",
    "artifact",
)
BESIDE = {
    "artifact": (),  # see above
    "export": ("errors", "granularity", "keys", "ops", "artifact", "export"),
    "kernels": ("errors", "granularity", "ops", "artifact", "export", "kernels"),
    "runtime": ("errors", "granularity", "ops", "artifact", "export", "kernels", "runtime", "hub"),
}
"""What hangs off the core: deploying knows the artifact alone, and no training code."""
OPTIONAL = {
    "datasets",
    "torch_pruning",
    "sklearn",
    "matplotlib",
    "jinja2",
    "transformers",
    "tensorboard",
    "PIL",
    "onnx",
    "onnxruntime",
    "gguf",
    "openvino",
    "triton",
}
REQUIRED = {"accelerate", "huggingface_hub", "numpy", "yaml", "rich", "safetensors", "torch", "tqdm", "typer", "zstandard"}
WITHOUT_TORCH = (
    "errors", "schedules", "granularity", "keys", "_version", "decode", "ops.layouts", "ops.entropy", "artifact.format",
    "artifact.reader", "artifact.coding", "artifact.size", "artifact.files", "hub", "inspecting",
)  # fmt: skip


def _files() -> dict[str, Path]:
    """Every module by its name below the package ("ops.uniform"); the package itself is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


FILES = _files()


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules that a file imports when it runs ("torch.nn", "bitstill.ops.uniform"); not what only type checkers see."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if _is_type_checking(node):
            return
        if top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            submodules = {
                alias.name for alias in node.names if f"{node.module}.{alias.name}".removeprefix("bitstill.") in FILES
            }
            found.update(f"{node.module}.{name}" for name in submodules)
            if submodules != {alias.name for alias in node.names}:
                found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _own(path: Path, **options: bool) -> set[str]:
    return {name.removeprefix("bitstill.") for name in imports(path, **options) if name.startswith("bitstill.")}


def _layer(name: str) -> int | None:
    return next((index for index, names in enumerate(LAYERS) if name.split(".")[0] in names), None)


def test_the_walk_sees_imports_at_every_depth(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import a.b\nfrom c import d\nfrom bitstill.ops import uniform\nif TYPE_CHECKING:\n    import e\n"
        "def f():\n    import g\n    class H:\n        from i import j\n"
    )
    assert imports(file) == {"a.b", "c", "bitstill.ops.uniform", "g", "i"}
    assert imports(file, top_level=True) == {"a.b", "c", "bitstill.ops.uniform"}


def test_every_module_has_its_place():
    homeless = {name for name in FILES if _layer(name) is None and name.split(".")[0] not in BESIDE}
    assert not homeless, f"add {sorted(homeless)} to a layer"


@pytest.mark.parametrize("name", [name for name in FILES if _layer(name) is not None])
def test_no_module_imports_from_a_higher_layer(name):
    mine = _layer(name)
    above = {other for other in _own(FILES[name]) if (_layer(other) or 0) > mine}
    assert not above, f"{name} may not import {sorted(above)}"


@pytest.mark.parametrize("name", [name for name in FILES if (_layer(name) or 9) < 3])
def test_the_core_does_not_know_the_artifact(name):
    assert not {other for other in _own(FILES[name]) if other.split(".")[0] in ("artifact", "export")}


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] == "artifact"])
def test_the_artifact_never_imports_training_code(name):
    def allowed(other: str) -> bool:
        return any(other == home or other.startswith(f"{home}.") for home in ARTIFACT_MAY_IMPORT)

    assert not {other for other in _own(FILES[name]) if not allowed(other)}


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] in {*BESIDE} - {"artifact"}])
def test_what_deploys_knows_the_artifact_alone(name):
    assert not {other for other in _own(FILES[name]) if other.split(".")[0] not in BESIDE[name.split(".")[0]]}


@pytest.mark.parametrize("name", FILES)
def test_nothing_imports_the_command_line(name):
    if not name.startswith("cli"):
        assert not {other for other in _own(FILES[name]) if other.split(".")[0] == "cli"}


@pytest.mark.parametrize("name", FILES)
def test_optional_packages_are_imported_lazily_and_others_are_declared(name):
    at_top = {module.split(".")[0] for module in imports(FILES[name], top_level=True)}
    if name.startswith("hf."):  # classes there derive from its classes; whoever needs that folder imports it where it is used
        at_top -= {"transformers"}
    assert not at_top & OPTIONAL, f"import {sorted(at_top & OPTIONAL)} where it is used"
    anywhere = {module.split(".")[0] for module in imports(FILES[name])}
    assert anywhere <= {*sys.stdlib_module_names, *REQUIRED, *OPTIONAL, "bitstill"}


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] != "hf"])
def test_transformers_is_known_to_one_folder_only(name):
    assert "transformers" not in {module.split(".")[0] for module in imports(FILES[name])}
    at_top = {module.removeprefix("bitstill.") for module in imports(FILES[name], top_level=True)}
    assert not {module for module in at_top if module.split(".")[0] == "hf"}, "import it where it is used"


@pytest.mark.parametrize(
    "name", [*WITHOUT_TORCH, *(name for name in FILES if name.split(".")[0] in ("export", "kernels", "runtime"))]
)
def test_what_reads_without_torch_reaches_no_torch(name):
    """Through everything that importing it imports in turn."""
    seen, queue = set(), [name]
    while queue:
        current = queue.pop()
        if current in seen or current not in FILES:
            continue
        seen.add(current)
        names = imports(FILES[current], top_level=True)
        assert not {module for module in names if module.split(".")[0] in ("torch", "accelerate")}, f"{name} -> {current}"
        below = {module.removeprefix("bitstill.") for module in names if module.startswith("bitstill.")}
        queue += [*below, *(parent.rpartition(".")[0] for parent in below)]
