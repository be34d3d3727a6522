"""Checks on folders that long runs fill in steps: unrelated contents and other settings are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitstill.errors import DataError


def check_unused(folder: Path) -> None:
    """Check that a folder is empty, except for our own temporary files.

    Raises:
        DataError: it is not.
    """
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):
        fix = "Choose another folder, so that nothing of yours is overwritten."
        raise DataError("a new or an empty folder", given="something else", where=str(folder), fix=fix)


def check_same(folder: Path, about: Mapping[str, Any], recorded: Mapping[str, Any], what: str) -> None:
    """Check that an unfinished folder has the same settings.

    Args:
        folder: folder, for errors.
        about: settings that determine its contents.
        there: settings recorded in it.
        what: kind of its contents, for errors.

    Raises:
        DataError: they differ.
    """
    for key, value in about.items():
        if recorded.get(key) != value:
            fix = "Choose another folder, or the settings recorded in it."
            given = f"{key} {recorded.get(key)!r}"
            raise DataError(f"{what} of {key} {value!r}", given=given, where=str(folder), fix=fix)
