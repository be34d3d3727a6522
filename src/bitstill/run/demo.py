"""The demonstrations: a table and a page about small networks on scikit-learn's images of digits.

Every row is an artifact, written, reloaded and evaluated; the page and report.json show where the bytes go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.artifact.files import check_target, write_file
from bitstill.data import digits
from bitstill.deliver.deliver import environment
from bitstill.errors import SpecError, suggest
from bitstill.report.page import comparison_page
from bitstill.report.tables import Row
from bitstill.run.compress import Result, compress
from bitstill.run.demo_plans import DEMONSTRATIONS, Plan
from bitstill.train.settings import Settings


@dataclass(frozen=True)
class DemoResult:
    """Result of a demonstration.

    Args:
        rows: rows of the table.
        report: contents of report.json.
    """

    rows: tuple[Row, ...]
    report: dict[str, Any]


def demo(
    out: str | Path,
    *,
    recipe: str = "quantized-distillation",
    seed: int = 0,
    epochs: float | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> DemoResult:
    """Train, deliver and compare; everything is written below `out`.

    Args:
        out: folder, created if missing; artifacts of an earlier demonstration in it are replaced.
        recipe: a key of `DEMONSTRATIONS`.
        seed: seed of all randomness.
        epochs: epochs of each trained row; None is the demonstration's default.
        say: callback for progress messages, one line each.

    Raises:
        SpecError: no such demonstration.
        BitstillError: the folder cannot be written.
    """
    started, folder = time.perf_counter(), Path(out)
    if recipe not in DEMONSTRATIONS:
        fix = suggest(recipe, DEMONSTRATIONS)
        raise SpecError("a recipe with a demonstration", given=repr(recipe), where="demo", fix=fix)
    demonstration = DEMONSTRATIONS[recipe]
    epochs = demonstration.epochs if epochs is None else epochs
    plans = demonstration.plans(epochs)
    for plan in plans:
        check_target(folder / plan.folder)
        (folder / f".{plan.folder}.checkpoint.safetensors").unlink(missing_ok=True)  # of an interrupted demonstration
    task = digits.load()
    results: dict[str, Result] = {}
    for index, plan in enumerate(plans, 1):
        say(f"[{index}/{len(plans)}] {plan.name}")
        models = {role: m if m.startswith("digits-") else str(folder / m) for role, m in plan.models.items()}
        results[plan.name] = compress(
            plan.recipe, task, models, out=folder / plan.folder, settings=Settings(seed=seed, device="cpu"), force=True
        )
    rows = tuple(_row(plan, results[plan.name]) for plan in plans)
    report = {
        "task": task.name,
        "recipe": recipe,
        "seed": seed,
        "epochs": epochs,
        "rows": [asdict(row) for row in rows],
        "wall_seconds": time.perf_counter() - started,
        **environment(),
    }
    latents: dict[str, nn.Module] = {name: result.models["student"] for name, result in results.items()}
    page = comparison_page(demonstration.title, rows, {name: result.report for name, result in results.items()}, latents)
    write_file(folder / "report.json", json.dumps(report, indent=1, sort_keys=True).encode())
    write_file(folder / "report.html", page.encode())
    return DemoResult(rows, report)


def _row(plan: Plan, result: Result) -> Row:
    size = result.report["size"]
    return Row(
        name=plan.name,
        method=plan.method,
        bits=plan.bits,
        metric=result.report["delivered"]["test"],
        file_bytes=size["file_bytes"],
        stored_bits=size["stored_bits"] or None,
        ratio=size["ratio"],
    )
