"""What README.md says works, and its figures are the committed ones."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitstill.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")))
    runpy.run_path(str(script))
    assert "by_kind" not in capsys.readouterr().err
    assert (tmp_path / "mine-2bit" / "model.safetensors").exists()


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("console") for line in block.splitlines() if line.startswith("bitstill ")]
    assert len(commands) >= 4
    for command in commands:
        arguments = [a if a != "20" else "1" for a in shlex.split(command)[1:]]  # one epoch tells as much here
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (command, result.output, result.exception)


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_tables_are_the_committed_results() -> None:
    found = re.findall(r"<!-- result: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert len(found) == 2
    for path, table in found:
        assert table == (ROOT / path).read_text()
