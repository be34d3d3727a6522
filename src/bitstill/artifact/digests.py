"""Digests of an artifact's small files: `config.json`, the recipe, and files for the preparation of inputs.

They detect damage and mixed files, not malice: an attacker could recompute them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitstill.artifact.files import write_file
from bitstill.artifact.format import CONFIG, DIGESTED_FILES, DIGESTS, EDITABLE_KEYS, SETTINGS, TOKENIZER_FILES
from bitstill.errors import ArtifactError

_FIX = "The file was edited or damaged; copy or deliver the folder again."


def with_digests(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Add digests of `config` itself and of the files in `folder`.

    Args:
        config: the whole of `config.json`; older digests in it are replaced.
        folder: folder of the artifact.
    """
    present = (name for name in DIGESTED_FILES if (folder / name).is_file())
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in present}
    complete = {**config, SETTINGS: {**config[SETTINGS], DIGESTS: {"files": files}}}
    complete[SETTINGS][DIGESTS]["config"] = _config_digest(complete)
    return complete


def renew_digests(folder: Path) -> None:
    """Rewrite the digests, once all files of an artifact are in place."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    write_file(folder / CONFIG, json.dumps(with_digests(config, folder), indent=1).encode())


def check_digests(config: Mapping[str, Any], folder: Path, *, complete: bool = True) -> None:
    """Check `config.json` and the files next to it against their digests (from version 3 on).

    Args:
        config: the whole of `config.json`.
        folder: the artifact's.
        complete: whether all files must exist; False if a library fetches one file at a time.

    Raises:
        ArtifactError: a file differs or is missing, or a tokenizer file was added.
    """
    settings = config[SETTINGS]
    digests = settings.get(DIGESTS)
    if digests is None and settings["version"] < 3:
        return
    files = digests.get("files") if isinstance(digests, dict) else None
    if not isinstance(files, dict) or not files.keys() <= set(DIGESTED_FILES):
        where = f"{folder / CONFIG}: {SETTINGS}.{DIGESTS}"
        raise ArtifactError("digests of the files", given=repr(digests)[:80], where=where, fix=_FIX)
    _compare(CONFIG, digests.get("config"), _config_digest(config), folder)
    for name, digest in files.items():
        if (folder / name).is_file():
            _compare(name, digest, hashlib.sha256((folder / name).read_bytes()).hexdigest(), folder)
        elif complete:
            raise ArtifactError(f"the file {name}", given="none", where=str(folder), fix="Copy or deliver the folder again.")
    added = {name for name in TOKENIZER_FILES if (folder / name).is_file()} - files.keys()
    if added and not files.keys().isdisjoint(TOKENIZER_FILES):
        fix = "Remove what was added: it would change how inputs are prepared."
        raise ArtifactError("the tokenizer's files as delivered", given=f"more: {sorted(added)}", where=str(folder), fix=fix)


def digested_files(config: Mapping[str, Any]) -> list[str]:
    """Names of the small files with digests in an artifact; none for versions 1 and 2."""
    digests = config[SETTINGS].get(DIGESTS)
    return [] if digests is None else [CONFIG, *digests["files"]]


def _config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of `config.json`, independent of spacing and order, without editable keys and the digest itself."""
    settings = config[SETTINGS]
    digests = {name: value for name, value in settings.get(DIGESTS, {}).items() if name != "config"}
    content = {name: value for name, value in config.items() if name not in EDITABLE_KEYS}
    content[SETTINGS] = {**settings, DIGESTS: digests}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _compare(name: str, delivered: object, present: str, folder: Path) -> None:
    if delivered != present:
        wanted = f"the {name} that was delivered (SHA-256 {str(delivered)[:12]}...)"
        raise ArtifactError(wanted, given=f"SHA-256 {present[:12]}...", where=str(folder / name), fix=_FIX)
