"""Damaged and hostile artifacts raise an error of bitstill's at worst, also with every memory access checked."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.exporters.test_networks import encoder_artifact, network_artifact
from tests.runtime import fuzz
from tests.runtime.native.test_builds import X86, built


@pytest.fixture(scope="module", params=["encoder", "pictures", "windows"])
def artifact(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "a"
    if request.param == "encoder":
        encoder_artifact("bert", folder)
    else:
        network_artifact("res8-narrow" if request.param == "pictures" else "digits-student", 2, folder)
    return folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A build of the library with sanitizers."""
    compiler = shutil.which("gcc")
    if not compiler or platform.machine() not in ("x86_64", "AMD64") or not sys.platform.startswith("linux"):
        pytest.skip("no GCC on x86 and Linux here: sanitizers are not tried")
    folder = tmp_path_factory.mktemp("watched")
    flags = ["-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built(folder / "libbitstill.so", compiler, X86, *flags, sources=())
    preloaded = [
        subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return folder, {"LD_PRELOAD": " ".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0"}


def test_they_are_refused_or_run(artifact):
    with np.errstate(all="ignore"):
        refused, ran = fuzz.tried(artifact, 100, seed=0)
    assert refused > 20 and ran > 3


def test_they_are_refused_or_run_without_the_library(artifact, monkeypatch):
    monkeypatch.setattr("bitstill.runtime.model.library", lambda: None)
    with np.errstate(all="ignore"):
        refused, ran = fuzz.tried(artifact, 60, seed=2)
    assert refused > 10 and ran > 1


@pytest.mark.slow
def test_no_memory_is_touched_that_is_not_theirs(artifact, watched):
    folder, environment = watched
    command = [sys.executable, fuzz.__file__, artifact, "60", "1", folder]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment = {**os.environ, **environment, **paths}
    found = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert found.returncode == 0 and str(folder) in found.stdout, found.stdout + found.stderr
