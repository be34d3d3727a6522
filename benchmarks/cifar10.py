"""CIFAR-10 with the teacher and students of Polino et al. (2018): every row evaluated from its artifact.

    python benchmarks/cifar10.py --data FOLDER            # writes benchmarks/results/cifar10.json and .md

Rows are written as they finish; an interrupted run resumes the unfinished row from its checkpoint.
All students have the same schedule, far shorter than the paper's 200 epochs. As in the paper, weights are quantized in
flat buckets of 256 with float32 scales, including the first and last layers; rows that end in `tensor` have one scale per
tensor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitstill
from bitstill.data.catalogue import load_task
from bitstill.deliver.deliver import environment

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from rows import data  # noqa: E402

PAPER: dict[str, Any] = {"granularity": bitstill.quant.Bucket(256), "scale_dtype": "float32", "skip": "none"}


def rows(work: Path, teacher_epochs: float, epochs: float, point_epochs: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Arguments of `bitstill.compress` by row name, as functions that are called only for rows that run."""
    teacher = work / "teacher"
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "teacher": lambda: {
            "recipe": bitstill.recipes.QuantizedDistillation(bits=None, kd_weight=0, epochs=teacher_epochs, lr=0.01),
            "models": {"student": "polino-teacher"},
        }
    }
    for number in (1, 2):
        name, student = f"student-{number}", f"polino-student-{number}"
        fresh = {"teacher": teacher, "student": student}
        distilled = {"teacher": teacher, "student": work / f"{name}-float"}
        found[f"{name}-float"] = lambda fresh=fresh: {
            "recipe": bitstill.recipes.QuantizedDistillation(bits=None, epochs=epochs), "models": fresh,
        }  # fmt: skip
        for bits in (2, 4):
            found[f"{name}-ptq-{bits}"] = lambda bits=bits, distilled=distilled: {
                "recipe": bitstill.recipes.PostTraining(bits=bits, **PAPER), "models": {"student": distilled["student"]},
            }  # fmt: skip
            found[f"{name}-ptq-{bits}-tensor"] = lambda bits=bits, distilled=distilled: {
                "recipe": bitstill.recipes.PostTraining(bits=bits, **PAPER | {"granularity": bitstill.quant.PerTensor()}),
                "models": {"student": distilled["student"]},
            }
            found[f"{name}-qd-{bits}"] = lambda bits=bits, fresh=fresh: {
                "recipe": bitstill.recipes.QuantizedDistillation(bits=bits, epochs=epochs, **PAPER), "models": fresh,
            }  # fmt: skip
            found[f"{name}-dq-{bits}"] = lambda bits=bits, distilled=distilled: {
                "recipe": bitstill.recipes.DifferentiableQuantization(bits=bits, epochs=point_epochs, float_epochs=0, **PAPER),
                "models": distilled,
            }  # fmt: skip
    return found


def table(results: dict[str, Any]) -> str:
    """Format the rows as Markdown."""
    lines = ["| row | test accuracy % | bytes on disk | bits per weight | smaller than float32 |", "|---|---|---|---|---|"]
    order = list(rows(Path(), 1, 1, 1))
    for name, row in sorted(results["rows"].items(), key=lambda item: order.index(item[0])):
        bits = f"{row['stored_bits']:.2f}" if row["stored_bits"] else "32"
        lines.append(f"| {name} | {row['test']:.2f} | {row['file_bytes']:,} | {bits} | {row['ratio']:.1f} x |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(data() / "cifar10"))
    parser.add_argument("--work", type=Path, default=HERE / "work" / "cifar10")
    parser.add_argument("--result", type=Path, default=HERE / "results" / "cifar10.json")
    parser.add_argument("--teacher-epochs", type=float, default=8)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--point-epochs", type=float, default=2)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="bf16")
    parser.add_argument("--only", nargs="*", default=None, help="row names")
    arguments = parser.parse_args()
    task = load_task("cifar10", Path(arguments.data))
    results = json.loads(arguments.result.read_text()) if arguments.result.exists() else {"rows": {}}
    results |= {
        "command": "python benchmarks/cifar10.py",
        "teacher_epochs": arguments.teacher_epochs,
        "epochs": arguments.epochs,
        "point_epochs": arguments.point_epochs,
        "seed": 0,
        "precision": arguments.precision,
        **environment(),
    }
    for name, arguments_of in rows(arguments.work, arguments.teacher_epochs, arguments.epochs, arguments.point_epochs).items():
        if name in results["rows"] or (arguments.only is not None and name not in arguments.only):
            continue
        started = time.perf_counter()
        settings = bitstill.train.Settings(precision=arguments.precision, checkpoint_every=200)
        result = bitstill.compress(**arguments_of(), task=task, out=arguments.work / name, settings=settings, resume=True)
        size = result.report["size"]
        results["rows"][name] = {
            "test": result.report["delivered"]["test"],
            "file_bytes": size["file_bytes"],
            "stored_bits": size["stored_bits"],
            "nominal_bits": size["nominal_bits"],
            "paper_bytes": size["paper_bytes"],
            "paper_huffman_bytes": size["paper_huffman_bytes"],
            "ratio": size["ratio"],
            "minutes": (time.perf_counter() - started) / 60,
            "recipe": result.report["recipe"],
        }
        arguments.result.parent.mkdir(parents=True, exist_ok=True)
        arguments.result.write_text(json.dumps(results, indent=1, sort_keys=False) + "\n")
        arguments.result.with_suffix(".md").write_text(table(results))
        print(f"{name}: {results['rows'][name]['test']:.2f} %, {size['file_bytes']:,} bytes", flush=True)


if __name__ == "__main__":
    main()
