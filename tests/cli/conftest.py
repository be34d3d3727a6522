"""Fixtures of the command line. Runs draw no report page: it takes longer than these runs, and tests/report covers it."""

from __future__ import annotations

import shutil
import sys
from typing import NamedTuple

import pytest

import bitstill
import bitstill.report.page
from bitstill.cli.main import main
from bitstill.recipes import QuantizedDistillation
from bitstill.train.settings import Settings

QUIET = Settings(progress=False, device="cpu", teacher_precision="float32")


class Run(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="package")
def _no_page():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitstill.report.page, "artifact_page", lambda *_, **__: "<!doctype html>")
        yield


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs the command line as its console script does, errors included: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["bitstill", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return Run(stopped.value.code or 0, printed.out, printed.err)

    return run


@pytest.fixture(scope="package")
def teacher(tmp_path_factory):
    """A float artifact of the digits teacher, barely trained."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    recipe = QuantizedDistillation(None, kd_weight=0, steps=3)
    bitstill.compress(recipe, "digits", {"student": "digits-teacher"}, out=folder, settings=QUIET)
    return folder


@pytest.fixture(scope="package")
def delivered(tmp_path_factory, teacher):
    """A 2-bit artifact of the digits student, barely trained; read-only."""
    folder = tmp_path_factory.mktemp("delivered") / "student"
    models = {"teacher": teacher, "student": "digits-student"}
    bitstill.compress(QuantizedDistillation(2, steps=3), "digits", models, out=folder, settings=QUIET)
    return folder


@pytest.fixture
def older(tmp_path, delivered):
    """A copy of an artifact, and a function that checks that it is unchanged, byte for byte."""
    folder = tmp_path / "older"
    shutil.copytree(delivered, folder)
    return folder
