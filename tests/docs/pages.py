"""Documentation pages as code and commands to run, in page order."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from typer.testing import CliRunner

from bitstill.cli.main import app
from tests.hf import tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

SHORTER = {
    "epochs=60": "epochs=1, teacher_epochs=1",
    "epochs=20": "epochs=1",
    "XTC(bits=1, epochs=3": "XTC(bits=1, steps=2",
    "--epochs 60": "--epochs 1",
    "--epochs 30": "--epochs 1",
    "--epochs 20": "--epochs 1",
    "--epochs 2 ": "--steps 2 ",
    "{bits: 2, epochs: 20}": "{bits: 2, epochs: 1, teacher_epochs: 1}",
}
"""Shorter durations for tests, by the text on the page."""
OPTIONS = {
    "--recipe xtc": ("--steps", "2"),
    "--task text": ("--max-length", "32"),
    "bitstill distill": ("--steps", "2", "--length", "16", "--layers", "2"),
    "--recipe binarybert": ("--steps", "1", "--set", "validations=1"),
    "--recipe quantized-distillation": ("--set", "teacher_epochs=1"),
    "demo --recipe pqk": ("--epochs", "1"),
    "compress --recipe pqk": ("--set", "warmup_epochs=0.2", "--set", "mutual_epochs=0.2"),
}
"""Options that shorten a command, by a substring of it."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        language: "python" and "console" run; "yaml" is written to `RUN.yaml`; "py" and "sh" need what a test does not have.
        text: lines of the block.
        line: first line number, for errors.
    """

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page."""
    text = page.read_text()
    fences = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(fence[1], fence[2], text.count("\n", 0, fence.start()) + 1) for fence in fences]


def commands(block: Block) -> Iterator[str]:
    """Lines of a console block that call bitstill."""
    return (line for line in block.text.splitlines() if line.startswith("bitstill "))


def run(page: Path, folder: Path, places: dict[str, str]) -> None:
    """Run everything on a page in `folder`, the current directory.

    Args:
        page: Markdown file.
        folder: empty folder for the files that the page writes.
        places: replacements for the names that a reader would replace by their own.
    """
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # where dataclasses look up their names
    for block in blocks(page):
        text = _with(block.text, {**places, **SHORTER})
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.language == "yaml" and text.startswith("recipe:"):
            (folder / "RUN.yaml").write_text(text)
        elif block.language == "python":
            exec(compile(text, where, "exec"), module.__dict__)
        elif block.language == "console":
            for command in commands(Block("console", text, block.line)):
                _invoke(command, where)


def _invoke(command: str, where: str) -> None:
    short = [option for part, options in OPTIONS.items() if part in command for option in options]
    result = CliRunner().invoke(app, shlex.split(command.partition("  #")[0])[1:] + short)
    assert result.exit_code == 0, (where, command, result.output, result.exception)


def _with(text: str, instead: dict[str, str]) -> str:
    for word, other in instead.items():
        text = text.replace(word, other)
    return text


def places(folder: Path) -> dict[str, str]:
    """Tiny models and a handful of sentences in place of the reader's files."""
    model = str(tiny.saved(folder / "model", "bert"))
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(tiny.sentences(120)[0]))
    return {
        "sentence-transformers/all-MiniLM-L6-v2": model,
        "MASKED-LM": str(tiny.saved_masked_lm(folder / "predictor")),
        "FOLDER": str(tiny.write_csv(folder / "texts")),
        " MODEL": f" {model}",
        " TEXT": f" {corpus}",
    }


def sentences(data: Path) -> Path:
    """SST-2's files with a few made-up rows, so that no data set is needed."""
    import pandas

    folder = data / "glue" / "sst2"
    folder.mkdir(parents=True)
    rows = {"sentence": ["a good film", "a bad film", "so good", "never good"] * 20, "label": [1, 0, 1, 0] * 20}
    for part in ("train", "validation"):
        pandas.DataFrame(rows).to_parquet(folder / f"{part}.parquet")
    return data
