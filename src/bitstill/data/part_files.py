"""Files of one split of a data set in a folder; only documented names count."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from bitstill.errors import DataError

_PIECE = r"(?:-(?P<number>\d+)(?:-of-(?P<count>\d+)(?:-[0-9a-f]{16})?)?)?"


def part_files(folder: Path, part: str, suffixes: Collection[str]) -> list[Path]:
    """List the files of a split in order: `train.csv`, or its pieces `train-0.csv`, `train-00000-of-00002.csv` and so on.

    Args:
        folder: folder to search, without its subfolders.
        part: "train", "test" and so on.
        suffixes: file suffixes to include, with their dots.

    Returns:
        Files of the same kind; an empty list if there are none.

    Raises:
        DataError: there are several kinds of files, a whole file beside pieces, or missing pieces.
    """
    pattern = re.compile(re.escape(part) + _PIECE)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    matches = [(path, pattern.fullmatch(path.stem)) for path in entries if path.suffix in suffixes and path.is_file()]
    pieces = sorted((-1 if match["number"] is None else int(match["number"]), path, match) for path, match in matches if match)
    paths = [path for _, path, _ in pieces]
    names = ", ".join(path.name for path in paths[:8])
    if len({path.suffix for path in paths}) > 1:
        fix = "Keep one kind of file."
        raise DataError(f"{part} files of one kind", given=f"several kinds: {names}", where=str(folder), fix=fix)
    counts = {match["count"] for _, _, match in pieces}
    numbers = [number for number, _, _ in pieces]
    if len(paths) > 1 and (min(numbers) < 0 or len(set(numbers)) < len(numbers) or len(counts) > 1):
        fix = "Keep one of them: rows that are read twice count twice."
        raise DataError(f"one {part} file, or the pieces of one", given=names, where=str(folder), fix=fix)
    count = next(iter(counts), None)
    if count is not None and numbers != list(range(int(count))):
        fix = "Copy or download the others."
        given = f"{len(paths)} of them: {names}"
        raise DataError(f"all {int(count)} pieces of {part}", given=given, where=str(folder), fix=fix)
    return paths
