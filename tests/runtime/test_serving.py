"""The documented server: single requests, load, and invalid requests."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

import bitstill.runtime
from tests.exporters.test_networks import encoder_artifact
from tests.hf import tiny

ROOT = Path(bitstill.__file__).parents[2]
EXAMPLE = ROOT / "examples" / "serve.py"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "a"
    encoder_artifact("bert", folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(artifact):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        ROOT,
        "examples.serve:app",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    environment = {**os.environ, "BITSTILL_ARTIFACT": str(artifact)}
    process = subprocess.Popen(list(map(str, command)), env=environment, cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            httpx.get(f"{address}/docs", timeout=5)
            break
        except httpx.TransportError:
            time.sleep(0.1)
            assert process.poll() is None, "the server ended"
    yield address
    process.terminate()
    process.wait(timeout=20)


def wanted(artifact, text):
    model, tokenizer = bitstill.runtime.load(artifact), Tokenizer.from_file(str(artifact / "tokenizer.json"))
    logits = model(input_ids=np.array([tokenizer.encode(text).ids]))[0]
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_many_requests_at_once_get_each_their_own_answer(server, artifact):
    texts = ["good film", "bad", "a good bad film", "film film film"]

    async def ask(client, number):
        found = await client.post(
            f"{server}/classify", json={"texts": [texts[number % 4], texts[(number + 1) % 4]]}, timeout=60
        )
        return found.json()

    async def all_at_once():
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=64)) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(200)))

    right = [wanted(artifact, text) for text in texts]
    for number, answers in enumerate(asyncio.run(all_at_once())):
        for place, answer in enumerate(answers):
            np.testing.assert_allclose(list(answer.values()), right[(number + place) % 4], atol=1e-5)


def test_nonsense_is_refused_and_the_server_lives_on(server):
    for asked in ({}, {"texts": []}, {"texts": "one"}, {"texts": ["a"] * 33}, {"texts": [1]}):
        assert httpx.post(f"{server}/classify", json=asked, timeout=30).status_code == 422
    for asked in (b'{"texts": ["\\ud800"]}', b'{"texts": ["' + b"good " * 7000 + b'"]}'):
        headers = {"content-type": "application/json"}
        assert httpx.post(f"{server}/classify", content=asked, headers=headers, timeout=30).status_code == 422
    assert httpx.post(f"{server}/classify", json={"texts": ["good " * 5000]}, timeout=30).status_code == 200
    assert httpx.post(f"{server}/classify", json={"texts": ["good"]}, timeout=30).status_code == 200


def example():
    spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    return serve


def test_what_does_not_classify_is_not_served(tmp_path):
    encoder_artifact("bert", tmp_path / "a", num_labels=1)
    tiny.tokenizer().save_pretrained(tmp_path / "a")
    with pytest.raises(SystemExit, match="a model that classifies texts"):
        example().Batcher(tmp_path / "a")


def test_a_full_queue_says_come_again(artifact):
    from fastapi import HTTPException

    serve = example()

    async def overflow():
        batcher = serve.Batcher(artifact)
        batcher.queue = asyncio.Queue(3)
        with pytest.raises(HTTPException) as refused:
            await batcher.ask(["good"] * 4)
        assert refused.value.status_code == 503

    asyncio.run(overflow())
