"""Artifacts changed on purpose, with valid digests, as a forger or a bug in the writer would leave them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from bitstill.artifact.digests import with_digests
from bitstill.artifact.format import CONFIG, DIGESTS, METADATA, SETTINGS, WEIGHTS, records_digest

Change = Callable[[Any], object]


def edit_config(folder: Path, change: Change) -> None:
    """Change `config.json` only."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def edit_signed(folder: Path, *, config: Change = id, tensors: Change = id) -> None:
    """Change `config.json`, tensors or both, and recompute every digest that is present."""
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    arrays: dict[str, np.ndarray] = {name: array.copy() for name, array in load_file(folder / WEIGHTS).items()}
    config(content)
    tensors(arrays)
    settings = content.get(SETTINGS)
    records = settings.get("layers", {}) if isinstance(settings, dict) else {}
    data = save(arrays, {METADATA: records_digest(records)})
    (folder / WEIGHTS).write_bytes(data)
    if isinstance(settings, dict):
        settings["weights_sha256"] = hashlib.sha256(data).hexdigest()
        content = with_digests(content, folder) if isinstance(settings.get(DIGESTS), dict) else content
    (folder / CONFIG).write_text(json.dumps(content))
