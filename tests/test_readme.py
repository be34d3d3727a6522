"""What README.md says works, and its figures are the committed ones."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitstill.cli.main import app

from .hf import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


SHORT = {
    "--recipe xtc": ("--steps", "2"),
    "bitstill distill": ("--steps", "2", "--length", "16", "--layers", "2"),
    "--recipe binarybert": ("--steps", "1", "--set", "validations=1"),
    "bitstill compare": ("--turns", "1", "--threads", "1", "--length", "16"),
    "bitstill bench": ("--turns", "1", "--threads", "1", "--length", "16"),
    "demo --recipe pqk": ("--epochs", "1"),
    "compress --recipe pqk": ("--set", "warmup_epochs=0.2", "--set", "mutual_epochs=0.2"),
}
"""Options that make a command quick enough for a test."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "readme.py"
    encoder = str(tiny.saved(tmp_path / "encoder", "bert"))
    script.write_text("\n".join(blocks("python")).replace("sentence-transformers/all-MiniLM-L6-v2", encoder))
    runpy.run_path(str(script))
    assert "by_kind" not in capsys.readouterr().err
    assert (tmp_path / "mine-2bit" / "model.safetensors").exists() and (tmp_path / "digits-onnx" / "model.onnx").exists()


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands one after the other, on short schedules; text ones on a tiny encoder and a handful of sentences."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITSTILL_DATA", str(sentences(tmp_path / "data")))
    model = str(tiny.saved(tmp_path / "model", "bert"))
    (tmp_path / "train.txt").write_text("\n\n".join(tiny.sentences(120)[0]))
    predictor = str(tiny.saved_masked_lm(tmp_path / "predictor"))
    places = {"MODEL": model, "MASKED-LM": predictor, "TEXT": str(tmp_path / "train.txt")}
    places |= {"--epochs 20": "--epochs 1", "--epochs 2 ": "--steps 2 "}
    commands = [line for block in blocks("console") for line in block.splitlines() if line.startswith("bitstill ")]
    assert len(commands) >= 7
    for command in commands:
        line = command
        for word, instead in places.items():
            line = line.replace(word, instead)
        arguments = shlex.split(line)[1:] + [option for word, options in SHORT.items() if word in line for option in options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (command, result.output, result.exception)
    (example,) = blocks("py")
    answer = runpy.run_path(
        str(written(tmp_path / "example.py", f"answer = None\n{example}".replace('pipeline("', 'answer = pipeline("')))
    )
    assert answer["answer"][0]["label"] in ("negative", "positive")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def sentences(data: Path) -> Path:
    """SST-2's files with a few made-up rows, so that no data set is needed."""
    import pandas

    folder = data / "glue" / "sst2"
    folder.mkdir(parents=True)
    rows = {"sentence": ["a good film", "a bad film", "so good", "never good"] * 20, "label": [1, 0, 1, 0] * 20}
    for part in ("train", "validation"):
        pandas.DataFrame(rows).to_parquet(folder / f"{part}.parquet")
    return data


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_tables_are_the_committed_results() -> None:
    found = re.findall(r"<!-- result: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert len(found) == 8
    for path, table in found:
        assert table == (ROOT / path).read_text()
