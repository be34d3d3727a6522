"""Folders that long work fills bit by bit: whose they are, and that they are gone on with only by the same work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitstill.errors import DataError


def check_unused(folder: Path) -> None:
    """Refuse a folder in which anything is, but for a half-written file of ours.

    Raises:
        DataError: there is something.
    """
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):
        fix = "Choose another folder, so that nothing of yours is overwritten."
        raise DataError("a new or an empty folder", given="something else", where=str(folder), fix=fix)


def check_same(folder: Path, about: Mapping[str, Any], there: Mapping[str, Any], what: str) -> None:
    """Refuse a folder that was begun by other work.

    Args:
        folder: for errors.
        about: what decides what the folder shall hold.
        there: what the folder says of itself.
        what: it holds, for errors.

    Raises:
        DataError: they differ.
    """
    for key, value in about.items():
        if there.get(key) != value:
            fix = "Choose another folder, or the settings with which it was begun."
            given = f"{key} {there.get(key)!r}"
            raise DataError(f"{what} of {key} {value!r}", given=given, where=str(folder), fix=fix)
