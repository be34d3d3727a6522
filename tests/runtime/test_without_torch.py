"""Base dependencies only: what runs without extras, and errors that name the missing extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.exporters.test_networks import encoder_artifact

BLOCKED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "accelerate", "transformers", "datasets", "tokenizers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Missing())
"""
ANSWER = """
import numpy as np
import bitstill.runtime
print(bitstill.runtime.load(sys.argv[1])(input_ids=np.full((2, 5), 7)).shape)
"""
COMMAND = "from bitstill.cli.main import main; sys.argv[0] = 'bitstill'; main()"


def run(script, *arguments):
    command = [sys.executable, "-c", BLOCKED + script, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "a"
    encoder_artifact("bert", folder)
    return folder


def test_an_artifact_answers(artifact):
    found = run(ANSWER, artifact)
    assert (found.stdout, found.returncode) == ("(2, 2)\n", 0), found.stderr


def test_an_artifact_is_inspected(artifact):
    found = run(COMMAND, "inspect", artifact)
    assert found.returncode == 0 and "word_embeddings" in found.stdout, found.stderr


@pytest.mark.parametrize("command", [("compress", "--recipe", "xtc", "--task", "sst2"), ("demo",), ("evaluate", "x")])
def test_the_rest_says_what_to_install(command):
    found = run(COMMAND, *command)
    assert found.returncode == 1 and not found.stdout
    assert f"error: bitstill {command[0]}: wanted torch, got no package 'torch'." in found.stderr
    assert "pip install 'bitstill[train]'" in found.stderr and "Traceback" not in found.stderr


def test_a_name_that_needs_torch_says_so():
    found = run("import bitstill\nbitstill.compress")
    assert "MissingPackageError: bitstill.compress: wanted torch" in found.stderr
