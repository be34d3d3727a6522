"""The demonstration: one teacher, nine students, a table, a page; on pictures that come with scikit-learn.

Every row is an artifact that was written, read back and evaluated; the page and report.json say where the bytes went.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.api import Result, compress
from bitstill.artifact.files import check_target, write_file
from bitstill.delivery import environment
from bitstill.recipes import DifferentiableQuantization, PostTraining, QuantizedDistillation, Recipe
from bitstill.report.page import comparison_page
from bitstill.report.tables import Row
from bitstill.tasks import digits
from bitstill.train.loop import Settings


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made.

    Args:
        rows: of the table.
        report: the contents of report.json.
    """

    rows: tuple[Row, ...]
    report: dict[str, Any]


@dataclass(frozen=True)
class _Plan:
    """One row: its folder, its names in the table, and how it is made. Models are folders of earlier rows or names."""

    folder: str
    name: str
    method: str
    bits: str
    recipe: Recipe
    models: dict[str, str]


def run_demo(folder: Path, *, seed: int = 0, epochs: float = 60, say: Callable[[str], None] = lambda _text: None) -> DemoResult:
    """Train, deliver and compare; everything is written under `folder`.

    Args:
        folder: made if it is not there; artifacts of an earlier demonstration in it are replaced.
        seed: of everything random.
        epochs: of each student; the teacher's too.
        say: told, in a line, what is being done.

    Raises:
        BitstillError: if the folder cannot be written.
    """
    started = time.perf_counter()
    plans = _plans(epochs)
    for plan in plans:
        check_target(folder / plan.folder)
        (folder / f".{plan.folder}.checkpoint.safetensors").unlink(missing_ok=True)  # of a demonstration that was stopped
    task = digits.load()
    results: dict[str, Result] = {}
    for index, plan in enumerate(plans, 1):
        say(f"[{index}/{len(plans)}] {plan.name}")
        models = {role: m if m.startswith("digits-") else str(folder / m) for role, m in plan.models.items()}
        results[plan.name] = compress(
            plan.recipe, task, models, out=folder / plan.folder, settings=Settings(seed=seed, device="cpu")
        )
    rows = tuple(_row(plan, results[plan.name]) for plan in plans)
    report = {
        "task": task.name,
        "seed": seed,
        "epochs": epochs,
        "rows": [asdict(row) for row in rows],
        "wall_seconds": time.perf_counter() - started,
        **environment(),
    }
    latents: dict[str, nn.Module] = {name: result.models["student"] for name, result in results.items()}
    page = comparison_page(
        "bitstill on handwritten digits", rows, {name: result.report for name, result in results.items()}, latents
    )
    write_file(folder / "report.json", json.dumps(report, indent=1, sort_keys=True).encode())
    write_file(folder / "report.html", page.encode())
    return DemoResult(rows, report)


def _plans(epochs: float) -> tuple[_Plan, ...]:
    supervised = QuantizedDistillation(bits=None, kd_weight=0, epochs=epochs)
    distilled = QuantizedDistillation(bits=None, epochs=epochs)
    fresh = {"teacher": "teacher", "student": "digits-student"}
    alone = {"student": "student-float"}
    trained = {"teacher": "teacher", "student": "student-float"}
    return (
        _Plan("teacher", "teacher", "float", "32", supervised, {"student": "digits-teacher"}),
        _Plan("student-float", "student, distilled", "float", "32", distilled, fresh),
        *(_plan("post-training", bits, PostTraining(bits=bits, skip="none"), alone) for bits in (4, 2, 1)),
        *(
            _plan("quantized distillation", bits, QuantizedDistillation(bits=bits, epochs=epochs, skip="none"), fresh)
            for bits in (4, 2, 1)
        ),
        *(
            _plan(
                "differentiable",
                bits,
                DifferentiableQuantization(bits=bits, epochs=epochs, float_epochs=0, skip="none"),
                trained,
            )
            for bits in (4, 2)
        ),
    )


def _plan(method: str, bits: int, recipe: Recipe, models: dict[str, str]) -> _Plan:
    folder = f"{method.replace(' ', '-')}-{bits}"
    return _Plan(folder, f"{method}, {bits} bit{'s' if bits > 1 else ''}", method, str(bits), recipe, models)


def _row(plan: _Plan, result: Result) -> Row:
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
