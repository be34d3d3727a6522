"""README.md and the pages under docs: their code runs, and their figures match the committed results."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import runpy
from pathlib import Path

import pytest

from bitstill.recipes import XTC
from bitstill.recipes.by_name import RECIPES

from . import pages
from .pages import PAGES, ROOT

RESULTS = ("cifar10", "native_runtime", "onnx_runtime", "xtc")
QUICK = {"arithmetic.md", "choose-bits.md", "errors.md", "export.md", "file-format.md", "own-network.md"}
"""Pages that run within seconds; `make test-all` runs the others."""
RUNNABLE = [page for page in PAGES if any(block.language in ("python", "console") for block in pages.blocks(page))]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name, marks=() if page.name in QUICK else pytest.mark.slow) for page in RUNNABLE],
)
def test_code_and_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("BITSTILL_DATA", str(pages.sentences(tmp_path / "data")))
    pages.run(page, work, pages.places(tmp_path))


@pytest.mark.slow
def test_the_delivered_folder_answers_in_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one block that runs a transformers pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITSTILL_DATA", str(pages.sentences(tmp_path / "data")))
    first = pages.Block("console", "bitstill compress --recipe xtc --model MODEL --task sst2 --bits 1 --out student-1bit\n", 1)
    for command in pages.commands(first):
        pages._invoke(command.replace("MODEL", pages.places(tmp_path)["sentence-transformers/all-MiniLM-L6-v2"]), "test")
    (block,) = [block for block in pages.blocks(ROOT / "docs/how-to/deploy.md") if block.language == "py"]
    script = tmp_path / "example.py"
    script.write_text(block.text.replace('pipeline("', 'answer = pipeline("'))
    assert runpy.run_path(str(script))["answer"][0]["label"] in ("negative", "positive")


def test_tables_are_the_committed_results() -> None:
    tables = [
        (page.name, path, table)
        for page in PAGES
        for path, table in re.findall(r"<!-- result: (\S+) -->\n(.*?)<!-- end -->", page.read_text(), re.DOTALL)
    ]
    assert len(tables) >= 9
    for page, path, table in tables:
        assert table == (ROOT / path).read_text(), page


def test_headline_figures_are_the_committed_ones() -> None:
    """The table of README.md against the result files that it links to."""
    results = {name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in RESULTS}
    xtc, cifar, onnx = results["xtc"]["rows"], results["cifar10"]["rows"], results["onnx_runtime"]["rows"]
    teacher, latency = xtc["sst2-teacher-0"], results["native_runtime"]["networks"]["MiniLM-L6"]["rows"]
    ours, int8 = (latency[name]["points"]["1 x 128"]["ms"] for name in ("bitstill.runtime, 1 bit", "ONNX Runtime int8"))
    student, floating = cifar["student-1-qd-2"], cifar["student-1-float"]
    readme = (ROOT / "README.md").read_text()
    for row in (xtc["sst2-1 bit, 6 layers-0"], xtc["sst2-ternary, 6 layers-0"]):
        size = f"{row['file_bytes'] / 1e6:.2f} MB of {teacher['file_bytes'] / 1e6:.1f} MB"
        assert f"{row['value']:.2f} % of {teacher['value']:.2f} % | {size}" in readme
    size = f"{student['file_bytes'] / 1e6:.2f} MB of {floating['file_bytes'] / 1e6:.2f} MB"
    assert f"{student['test']:.2f} % of {floating['test']:.2f} % | {size}" in readme
    bytes_of = [row["file_bytes"] / 1e6 for row in (xtc["sst2-1 bit, 6 layers-0"], onnx["int8, by ONNX Runtime"])]
    assert f"{ours:.1f} ms; ONNX Runtime int8 {int8:.1f} ms | {bytes_of[0]:.2f} MB; {bytes_of[1]:.1f} MB" in readme
    spoken = (ROOT / "benchmarks/results/pqk.md").read_text()
    assert "| res8-narrow | 4 | 80% | 99.00 | 16.33 | 99.00 |" in spoken and "| 99.00 % of 99.00 % | 9.6 kB |" in readme


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE):
            assert f"\n{target}:" in makefile, (page.name, target)


def test_links_and_files_that_pages_name_exist() -> None:
    """README.md only, which readers see on its own; the documentation build checks links within the site."""
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target
    for page in PAGES:
        for path in re.findall(r"`((?:benchmarks|examples|tests|src)/[\w/.-]+)`", page.read_text()):
            assert (ROOT / path).exists(), (page.name, path)


def test_references_hold_every_command_option_and_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generated references, without a build; the strict build is `make docs`."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    hooks = importlib.import_module("build_hooks")
    commands, recipes = hooks.command_reference(), hooks.recipe_reference()
    assert all(f"## {name}\n" in commands for name in ("compress", "evaluate", "export")) and "`--set`" in commands
    assert all(f"## {name}\n" in recipes for name in RECIPES)
    assert all(f"| `{field.name}` |" in recipes for field in dataclasses.fields(XTC))
    assert 'heading: "bitstill.quant.Binary"' in hooks.public_api("bitstill.quant")
    assert "](docs/" not in hooks.start_page()


def test_the_picture_shows_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture's alternative text names every model with its figures."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    picture = importlib.import_module("picture")
    drawn, again = picture.PICTURE.read_text(), picture.drawing()
    label = re.compile(r'aria-label="([^"]*)"')
    assert label.search(drawn)[1] == label.search(again)[1]
