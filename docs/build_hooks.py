"""What the documentation makes from the code: the start page, the references, and the pages that live elsewhere in the project.

MkDocs calls `on_files` and `on_page_markdown`. Marks in pages are comments, such as `<!-- commands -->`; see `MARKS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that live beside README.md, by their place in the documentation."""


def start_page() -> str:
    """README.md as a page under docs."""
    text = (ROOT / "README.md").read_text()
    for page, file in ELSEWHERE.items():
        text = text.replace(f"]({file})", f"]({page})")
    return text.replace("](docs/", "](")


def moved_page(file: str) -> str:
    """A page from beside README.md, whose paths into docs are written as code."""
    return (ROOT / file).read_text()


def public_api(package: str) -> str:
    """Every public class and function of a package, as mkdocstrings reads them; constants and aliases are left out."""
    import importlib

    from bitstill._lazy import public_names

    module = importlib.import_module(package)
    entries = []
    for name, origin in sorted(public_names(str(module.__file__)).items(), key=lambda entry: entry[0].lower()):
        if origin.module != package and hasattr(getattr(module, name), "__module__"):
            heading = f'    options: {{heading: "{package}.{name}", toc_label: "{name}"}}'
            entries.append(f"::: {origin.module}.{origin.name}\n{heading}")
    return "\n\n".join(entries)


def command_reference() -> str:
    """Every command with its arguments and options, from the command line's own help."""
    import typer

    from bitstill.cli.main import app

    return "\n".join(_command(name, command) for name, command in typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]


def _command(name: str, command: Any) -> str:
    rows = [_parameter(each) for each in command.params if each.name != "help"]
    usage = " ".join(["bitstill", name, *(each.metavar or f"{{{each.name}}}" for each in command.params if _is_argument(each))])
    table = ["| option | default | meaning |", "|---|---|---|", *rows]
    return "\n".join([f"## {name}", "", command.help, "", "```text", f"{usage} [OPTIONS]", "```", "", *table, ""])


def _parameter(parameter: Any) -> str:
    names = parameter.opts if not _is_argument(parameter) else [parameter.metavar or f"{{{parameter.name}}}"]
    default = parameter.default if parameter.default not in (None, False, (), []) and not callable(parameter.default) else ""
    cells = (", ".join(f"`{each}`" for each in names), f"`{default}`" if default != "" else "", parameter.help or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def recipe_reference() -> str:
    """Every recipe with its options, as `bitstill recipes` lists them."""
    from bitstill.recipes.by_name import describe, describe_all

    return "\n".join(_recipe(describe(each["name"])) for each in describe_all())


def _recipe(recipe: dict[str, Any]) -> str:
    rows = [
        f"| `{option['name']}` | `{_short(option['default'])}` | {_cell(option['meaning'])} |" for option in recipe["options"]
    ]
    summary = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", recipe["summary"])
    return "\n".join([f"## {recipe['name']}", "", summary, "", "| option | default | meaning |", "|---|---|---|", *rows, ""])


def _short(value: Any) -> str:
    if isinstance(value, dict) and "kind" in value:
        settings = ", ".join(f"{key}={each}" for key, each in value.items() if key != "kind")
        return f"{value['kind']}({settings})"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def stages(name: str) -> str:
    """The figure of a recipe at its defaults."""
    from bitstill.recipes.by_name import recipe_class
    from bitstill.recipes.example_run import example_stages
    from bitstill.report.stage_plan import stage_plans
    from bitstill.report.stage_svg import stage_svg

    return f'<div class="stages">\n{stage_svg(stage_plans(example_stages(recipe_class(name)())))}\n</div>'


MARKS: dict[str, Callable[..., str]] = {
    r"<!-- names of (\S+) -->": public_api,
    r"<!-- commands -->": command_reference,
    r"<!-- recipes -->": recipe_reference,
    r"<!-- stages of (\S+) -->": stages,
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that live elsewhere."""
    from mkdocs.structure.files import File

    for page, file in ELSEWHERE.items():
        files.append(File.generated(config, page, content=moved_page(file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001 (MkDocs passes them)
    """Fill the marks of a page."""
    if page.file.src_uri == "index.md":
        return start_page()
    for mark, make in MARKS.items():
        markdown = re.sub(mark, lambda match, make=make: make(*match.groups()), markdown)  # type: ignore[misc]
    return markdown
