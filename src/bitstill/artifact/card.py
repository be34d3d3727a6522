"""The model card: README.md of an artifact, written from its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(report: Mapping[str, Any], name: str) -> str:
    """A model card in Markdown with the Hub's metadata block.

    Args:
        report: contents of report.json.
        name: name of the artifact.
    """
    size, delivered = report["size"], report["delivered"]
    rows = [
        ("task", report["task"]),
        (f"{delivered['metric']} on {delivered['samples']:,} test samples", f"{delivered['test']:.2f}"),
        ("model.safetensors", f"{size['file_bytes']:,} bytes ({size['ratio']:.1f} times smaller than float32)"),
        ("bits per quantized weight", f"{size['nominal_bits']:.2f} nominal, {size['stored_bits']:.2f} with scales"),
    ]
    if "teacher" in report:
        rows.insert(2, ("teacher", f"{report['teacher']['test']:.2f}, {report['teacher']['file_bytes']:,} bytes"))
    table = "\n".join(f"| {left} | {right} |" for left, right in rows)
    warnings = "".join(f"> **Warning.** {message}\n\n" for message in report.get("warnings", ()))
    return f"""---
library_name: bitstill
tags: [bitstill, quantized, {report["recipe"]["kind"]}]
---

# {name}

A network compressed by training with bitstill, recipe `{report["recipe"]["kind"]}`.

{warnings}| | |
|---|---|
{table}

Every figure was measured on the files in this folder after reading them back. `recipe.yaml` repeats the run,
`report.json` and `report.html` hold the details.

```python
import bitstill
model = bitstill.load("{name}")
```
"""
