"""Put the committed result tables into README.md, between their marks.

python benchmarks/readme.py          # --check only says whether they are up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!-- result: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """`text` with every marked place holding its result file."""
    return MARK.sub(lambda found: found[1] + (ROOT / found[2]).read_text() + found[3], text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    wanted = filled(readme.read_text())
    if "--check" in sys.argv and wanted != readme.read_text():
        sys.exit("README.md differs from benchmarks/results: run python benchmarks/readme.py")
    readme.write_text(wanted)
