"""Sources of published data sets: parquet files in a folder, or the Hugging Face hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitstill.data.part_files import part_files
from bitstill.errors import DataError, need_package


def from_hub(name: str, configuration: str | None, part: str, *, where: str, purpose: str, revision: str | None = None) -> Any:
    """Load the rows of one split of a data set on the hub.

    Args:
        name, configuration, part, revision: as for `datasets.load_dataset`.
        where, purpose: for errors.

    Raises:
        DataError: it cannot be loaded.
        MissingPackageError: without `datasets`.
    """
    datasets = need_package("datasets", extra="all", purpose=purpose)
    chosen = {"revision": revision} if revision else {}
    try:
        return datasets.load_dataset(name, configuration, split=part, **chosen)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the data set {name}{f' ({configuration})' if configuration else ''} from the Hugging Face hub",
            given=f"{type(error).__name__}: {error}",
            where=where,
            fix="Check the connection, or point --data or BITSTILL_DATA at a folder with parquet files.",
        ) from error


def parquet_files(folder: Path, part: str) -> list[str]:
    """List the files of one split, in order.

    Raises:
        DataError: there are none, or pieces are missing.
    """
    files = [str(path) for path in part_files(folder, part, (".parquet",))]
    if not files:
        fix = "Point --data or BITSTILL_DATA at the folder."
        raise DataError(f"{part}.parquet, or its pieces", given="no such files", where=str(folder), fix=fix)
    return files


def from_parquet(files: list[str], folder: Path, *, purpose: str) -> Any:
    """Load the rows of parquet files into memory.

    Raises:
        DataError: they cannot be read.
        MissingPackageError: without `datasets`.
    """
    datasets = need_package("datasets", extra="all", purpose=purpose)
    try:
        with quiet(datasets):
            return datasets.Dataset.from_parquet(files, keep_in_memory=True)
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise DataError(
            "intact parquet files with rows",
            given=str(error.__cause__ or error),
            where=str(folder),
            fix="Copy or download them again.",
        ) from error


@contextlib.contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Silence progress bars and logging of `datasets`: local files load quickly, and errors are reported once, by us."""
    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL + 1)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()
