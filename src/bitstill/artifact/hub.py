"""Artifacts on the Hugging Face Hub: download and upload. Tokens are handled by huggingface_hub."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from bitstill.artifact.format import CARD, CONFIG, FILES, REPORT, WEIGHTS
from bitstill.artifact.reader import read
from bitstill.errors import ArtifactError

_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def resolve_folder(source: str | Path) -> Path:
    """Folder of an artifact, which is downloaded if `source` is a name on the hub.

    Args:
        source: a folder; or "owner/name" or "owner/name@revision", where no such folder is.

    Raises:
        ArtifactError: nothing was found under that name, or it holds no artifact.
    """
    if Path(source).exists() or not _NAME.fullmatch(str(source)):
        return Path(source)
    from huggingface_hub import snapshot_download

    name, _, revision = str(source).partition("@")
    with _explained(str(source), "Check the name, the network and, for a private one, `hf auth login`; or name a folder."):
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        fix = "Name a repository that `bitstill push` made."
        raise ArtifactError("an artifact", given="a repository without one", where=str(source), fix=fix)
    return folder


def push(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Upload the artifact in `folder` to the hub.

    Args:
        folder: an artifact, which is read and checked first. Its model card is written anew, with the new name.
        name: "owner/name"; made if it is not there.
        private: whether only you can see it, if it is made.

    Returns:
        Its address.

    Raises:
        ArtifactError: the artifact is damaged, or the hub refuses.
    """
    read(folder)
    source = Path(folder)
    if not _NAME.fullmatch(name) or "@" in name:
        raise ArtifactError("owner/name", given=repr(name), where="push", fix="For example: ada/minilm-1bit.")
    from huggingface_hub import CommitOperationAdd, HfApi

    from bitstill.artifact.card import model_card

    files: dict[str, Path | bytes] = {file: source / file for file in FILES if (source / file).is_file()}
    report = json.loads((source / REPORT).read_text()) if REPORT in files else {}
    if "delivered" in report:
        files[CARD] = model_card(report, name).encode()
    added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]
    hub = HfApi()
    with _explained(name, "Log in with `hf auth login`, with a token that may write there; nothing was changed here."):
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.create_commit(name, added, commit_message="Artifact of bitstill").commit_url)


@contextlib.contextmanager
def _explained(where: str, fix: str) -> Iterator[None]:
    """Errors of the network, the hub and its client as one of ours."""
    from huggingface_hub import errors

    # HTTPError is whatever the package's client raises when there is no connection; it is not exported.
    known = (errors.HFValidationError, errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled, OSError)
    try:
        yield
    except (*known, vars(errors)["HTTPError"]) as error:
        given = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ArtifactError("an answer from the hub", given=given, where=where, fix=fix) from None
