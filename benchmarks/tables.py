"""Insert the committed result tables into README.md and the pages under docs, between their markers.

python benchmarks/tables.py          # --check only reports whether they are up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!-- result: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """README.md and every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """`text` with the result file inserted at every marker."""
    return MARK.sub(lambda mark: mark[1] + (ROOT / mark[2]).read_text() + mark[3], text)


if __name__ == "__main__":
    for page in pages():
        text = page.read_text()
        if "--check" in sys.argv and filled(text) != text:
            sys.exit(f"{page.relative_to(ROOT)} differs from benchmarks/results: run python benchmarks/tables.py")
        page.write_text(filled(text))
