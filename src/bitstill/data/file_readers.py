"""Readers of CSV, JSON, parquet and text files: strict, UTF-8 only, one clear error for each problem.

Cells of CSV files are returned as strings, empty ones as None. Callers, which know what a column is for, convert them.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bitstill.errors import DataError, need_package, one_line

Row = dict[str, Any]
Table = dict[str, list[Any]]
"""Columns by name, all of the same length."""
LARGEST_CELL = 1 << 27
"""Maximum length of a cell in a CSV file, in characters."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_START = 4096


def read_table(paths: Iterable[Path]) -> Table:
    """Read the files of one table as columns; a key missing from a JSON object is None.

    Raises:
        DataError: a file cannot be read, is damaged, or has different columns from the first one.
    """
    table: Table = {}
    for path in paths:
        columns = _columns(path)
        if table and columns and columns.keys() != table.keys():
            fix = "Give all pieces the same columns."
            raise DataError(f"columns {', '.join(table)}", given=", ".join(columns), where=str(path), fix=fix)
        for name, values in columns.items():
            table.setdefault(name, []).extend(values)
    return table


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Read the rows of a CSV, JSON, parquet or text file one at a time. Lines of a text file form the column "text".

    Args:
        path: file to read.
        columns: columns to read from a parquet file that has all of them; None reads every column.

    Raises:
        DataError: the file cannot be read, or is damaged.
    """
    try:
        yield from _parquet_rows(path, columns) if path.suffix == ".parquet" else _READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        fix = "Convert it, for example: iconv -f WINDOWS-1252 -t UTF-8."
        given = f"UnicodeDecodeError in line {_undecodable_line(path)}"
        raise DataError("a readable file in utf-8", given=given, where=str(path), fix=fix) from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(path, one_line(error)) from error


def _columns(path: Path) -> Table:
    rows = list(read_rows(path))
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CELL))
    with _open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            _check_header(header, path)
            for cells in reader:
                if cells and len(cells) != len(header):
                    given = f"{len(cells)} in line {reader.line_num}"
                    fix = "Correct the file: a text with commas stands between double quotes."
                    raise DataError(f"{len(header)} cells a row, as in the header", given=given, where=str(path), fix=fix)
                if cells:
                    yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
        except csv.Error as error:
            raise _unreadable(path, f"csv.Error in line {reader.line_num}: {error}") from error


def _check_header(header: list[str], path: Path) -> None:
    """Refuse separators other than commas, and duplicate column names. An unnamed first column (an index) is allowed."""
    where = f"{path}, line 1"
    if not any(header):
        raise DataError("a readable file with a header", given="an empty line", where=where, fix="Name the columns there.")
    other = next((word for sign, word in _SEPARATORS.items() if len(header) == 1 and sign in header[0]), None)
    if other is not None:
        fix = "Save it with commas, or as JSON lines or parquet."
        raise DataError("a header with commas", given=f"{header[0][:80]!r}, with {other}", where=where, fix=fix)
    _check_distinct(header, where)


def _check_distinct(names: Iterable[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        given = f"{twice[0][:80]!r} twice"
        raise DataError("columns of different names", given=given, where=where, fix="Rename or remove one of them.")


def _json_rows(path: Path) -> Iterator[Row]:
    with _open_text(path) as file:
        start = file.read(_START).lstrip()[:1]
        file.seek(0)
        if start == "[":
            records = json.load(file, object_pairs_hook=_object)
            yield from (_checked(record, f"{path}, object {number}") for number, record in enumerate(records))
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    record = json.loads(line, object_pairs_hook=_object)
                except (ValueError, RecursionError) as error:
                    raise _unreadable(path, f"{one_line(error)}, in line {number} of the file") from error
                yield _checked(record, f"{path}, line {number}")


def _object(pairs: list[tuple[str, Any]]) -> Row:
    _check_distinct((name for name, _ in pairs), "an object")
    return dict(pairs)


def _checked(record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        fix = "Write one object a line, with the columns as keys."
        raise DataError("a JSON object", given=repr(record)[:80], where=where, fix=fix)
    return record


def _parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    parquet = need_package("pyarrow.parquet", extra="all", purpose="parquet files")
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _check_distinct(names, str(path))
        present = columns if columns is not None and set(columns) <= set(names) else None
        for batch in file.iter_batches(columns=present):
            yield from batch.to_pylist()


def _text_rows(path: Path) -> Iterator[Row]:
    with _open_text(path) as file:
        for line in file:
            yield {"text": line.rstrip("\n")}


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv_rows, ".json": _json_rows, ".jsonl": _json_rows, ".txt": _text_rows,
}  # fmt: skip


def _open_text(path: Path, newline: str | None = None) -> IO[str]:
    """Open a text file in UTF-8, skipping a byte order mark.

    Raises:
        DataError: the file is in UTF-16 or UTF-32, or is not text.
    """
    with open(path, "rb") as file:
        start = file.read(_START)
    if b"\0" in start:
        fix = "Convert it, for example: iconv -f UTF-16 -t UTF-8."
        raise DataError("a readable file in utf-8", given="one with zero bytes", where=str(path), fix=fix)
    return open(path, encoding="utf-8-sig", newline=newline)


def _undecodable_line(path: Path) -> int:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def _unreadable(path: Path, given: str) -> DataError:
    return DataError("a readable file", given=given, where=str(path), fix="Check the file.")
