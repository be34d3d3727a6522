"""Table of `bitstill demo`, for README.md.

python benchmarks/demo.py          # writes benchmarks/results/demo.json and .md
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bitstill.run.demo import demo

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = demo(Path(folder), say=lambda text: print(text, flush=True))
    RESULTS.mkdir(exist_ok=True)
    report = {"command": "bitstill demo", **found.report}
    (RESULTS / "demo.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    lines = ["| model | test accuracy % | bytes on disk | bits per weight | smaller than float32 |", "|---|---|---|---|---|"]
    for row in found.rows:
        bits = f"{row.stored_bits:.2f}" if row.stored_bits else "32"
        lines.append(f"| {row.name} | {row.metric:.2f} | {row.file_bytes:,} | {bits} | {row.ratio:.1f} x |")
    (RESULTS / "demo.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
