"""Damaged and hostile artifacts for `bitstill.runtime`: each runs or raises an error of bitstill's. Never a crash.

    python tests/runtime/fuzz.py ARTIFACT [COUNT] [SEED] [FOLDER OF A LIBRARY]

Checksums are recomputed after each change, as an attacker would, to test the checks behind them.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

import bitstill.runtime
from bitstill.artifact.digests import with_digests
from bitstill.artifact.format import CONFIG, DIGESTS, METADATA, WEIGHTS, records_digest
from bitstill.artifact.reader import read_config
from bitstill.errors import BitstillError
from bitstill.program.samples import random_inputs


def numbers(value, path=()):
    """Every leaf of a JSON value, by path."""
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(each, (*path, key))
    elif path:
        yield path


def changed_setting(config, draw):
    path = draw.choice(sorted(numbers(config), key=str))
    target = config
    for key in path[:-1]:
        target = target[key]
    old = target[path[-1]]
    others = [0, -1, 1, 2, 3, 7, 2**31, 2**63, 0.5, "x", None, True, [], [1, 2], {}]
    target[path[-1]] = draw.choice([*others, old + 1, old - 1, old * 2] if isinstance(old, (int, float)) else others)


def changed_tensor(tensors, draw):
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    match draw.randrange(5):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensor.reshape(-1)[: draw.randrange(tensor.size + 1)].copy()
        case 2:
            tensors[name] = np.concatenate([tensor.reshape(-1), tensor.reshape(-1)])
        case 3:
            tensors[name] = tensor.astype(draw.choice([np.uint8, np.float16, np.float32, np.int64, np.bool_]))
        case 4:
            raw = bytearray(np.ascontiguousarray(tensor).tobytes())
            for _ in range(min(len(raw), 20)):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            tensors[name] = np.frombuffer(bytes(raw), tensor.dtype).reshape(tensor.shape)


def hostile(source, target, draw):
    """A copy of an artifact with one or two changes and valid checksums."""
    shutil.copytree(source, target)
    config, tensors = json.loads((source / CONFIG).read_text()), load_file(source / WEIGHTS)
    for _ in range(draw.randint(1, 2)):
        if draw.random() < 0.5:
            changed_setting(config, draw)
        elif tensors:
            changed_tensor(tensors, draw)
    settings = config.get("quantization_config")
    records = settings.get("layers", {}) if isinstance(settings, dict) else {}
    data = save(tensors, {METADATA: records_digest(records)})
    if draw.random() < 0.1:
        data = data[: draw.randrange(len(data))]
    (target / WEIGHTS).write_bytes(data)
    if isinstance(settings, dict):
        settings["weights_sha256"] = hashlib.sha256(data).hexdigest()
        config = with_digests(config, target) if isinstance(settings.get(DIGESTS), dict) else config
    (target / CONFIG).write_text(json.dumps(config))


def tried(source, count, seed):
    """Numbers of artifacts that were refused and that ran."""
    from bitstill.runtime import load

    values = random_inputs(read_config(source), 2, 5)
    refused = 0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            folder = Path(scratch) / str(number)
            hostile(source, folder, random.Random(f"{seed} {number}"))
            try:
                load(folder, threads=2)(**values)
            except BitstillError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}, number {number}: {type(error).__name__}: {error}") from error
            shutil.rmtree(folder)
    return refused, count - refused


if __name__ == "__main__":
    if len(sys.argv) > 4:
        bitstill.runtime.__path__.insert(0, sys.argv[4])
    with np.errstate(all="ignore"):
        refused, ran = tried(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300, int((*sys.argv, "", 0)[3] or 0))
    from bitstill.runtime.library import library

    print(f"{refused} refused, {ran} ran, by {library()}")
