"""Artifacts on a hub: push, fetch by name, and error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.hub_server import serving

PROGRAM = (sys.executable, "-m", "bitstill.cli.main")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub, and a function that runs the command line against it in its own process."""
    with serving() as found:
        own = {"HF_ENDPOINT": found.address, "HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_TOKEN": "hf_of_a_test"}
        environment = {**os.environ, **own, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

        def run(*arguments):
            command = (*PROGRAM, *map(str, arguments))
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

        found.run = run
        yield found


def test_an_artifact_comes_back_by_name(hub, delivered):
    pushed = hub.run("push", delivered, "ada/digits", "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(f"{hub.address}/ada/digits/commit/") and hub.private["ada/digits"]
    there = hub.repositories["ada/digits"]
    assert there["model.safetensors"] == (delivered / "model.safetensors").read_bytes()
    assert set(there) == {file.name for file in delivered.iterdir()}
    card = there["README.md"].decode()
    assert card.startswith("---\nlibrary_name: bitstill") and 'bitstill.load("ada/digits")' in card
    wanted = json.loads((delivered / "report.json").read_text())["delivered"]["test"]
    found = hub.run("evaluate", "ada/digits", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["value"] == wanted, found.stderr


def test_what_the_hub_refuses_is_said(hub, delivered, tmp_path):
    missing = hub.run("inspect", "ada/nothing")
    assert missing.returncode == 1 and "ada/nothing: wanted an answer from the hub, got 404" in missing.stderr
    hub.repositories["ada/other"] = {"README.md": b"nothing else"}
    empty = hub.run("inspect", "ada/other")
    assert empty.returncode == 1 and "wanted an artifact, got a repository without one" in empty.stderr
    hub.refuse = True
    refused = hub.run("push", delivered, "ada/second")
    hub.refuse = False
    assert refused.returncode == 1 and "no right to write" in refused.stderr and "ada/second" not in hub.repositories


@pytest.mark.parametrize("name", ["digits", "ada/di gits", "ada/digits@v2", "../digits"])
def test_a_name_is_owner_and_name(cli, delivered, name):
    found = cli("push", delivered, name)
    assert found.status == 1 and "wanted owner/name" in found.err


def test_only_whole_artifacts_are_put_there(cli, older):
    (older / "model.safetensors").write_bytes(b"damaged")
    assert cli("push", older, "ada/digits").status == 1
