"""Overhead of compression over the unavoidable work: teacher forward, plain student forward and backward.

    python benchmarks/step_overhead.py          # writes benchmarks/results/step_overhead.json and .md

The variants run in turns within one process, so that other load on the machine affects all of them equally; the figure is the
median over turns of the ratio within a turn. `compression` is one training step at quantized weights on a prepared batch,
against the same step of the float student. `whole step` adds the parts of any training: making and augmenting the batch, the
optimizer, zeroing gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import bitstill
from bitstill.data.images import DRAWS, normalising_forward, shift_and_flip
from bitstill.data.networks import build
from bitstill.data.objectives import Classification
from bitstill.data.shuffle import uniform
from bitstill.data.task import Split, Task
from bitstill.deliver.deliver import environment
from bitstill.quant.rules import Compression, quantizer
from bitstill.recipes.supervision import distillation_terms
from bitstill.train.actions import Compress
from bitstill.train.optim import SGD, parameter_groups
from bitstill.train.stage import Stage
from bitstill.train.step import TrainingStep
from bitstill.train.teachers import Teachers

HERE = Path(__file__).parent
CPU = torch.device("cpu")
GRANULARITIES = {"bucket 256": bitstill.quant.Bucket(256), "group 128": bitstill.quant.PerGroup(128)}
SETTINGS = {
    "float32": ((2, "bucket 256"),),
    "bf16": ((2, "bucket 256"), (4, "group 128"), (1, "group 128")),
}


def synthetic_task() -> Task:
    """Random images of CIFAR-10's shape; the time of a step does not depend on their content."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=generator)
    part = Split({"image": images}, torch.randint(0, 10, (512,), generator=generator))
    return Task(
        "synthetic", part, part, part, Classification(10), normalising_forward([0.5] * 3, [0.25] * 3), shift_and_flip, DRAWS
    )


def variants(name: str, bits: int, granularity: Any, precision: str, batch_size: int) -> dict[str, Callable[[], None]]:
    """Steps to compare, by name."""
    task = synthetic_task()
    terms = distillation_terms(task.objective, temperature=2.0, kd_weight=0.7, reduction="batchmean")
    stage = Stage("s", terms=terms, steps=1, batch_size=batch_size)
    teacher = build("polino-teacher", role="teacher")
    plain, compressed = build(name), build(name)
    rule = Compression(weight=quantizer(bits, granularity))
    Compress("student", rule).apply({"student": compressed}, task, 0)
    teachers = Teachers(stage, {"teacher": teacher}, task, CPU, bf16=precision == "bf16")
    indices = torch.arange(batch_size)
    batch = task.train.take(indices)

    def step(module: TrainingStep, data: dict[str, torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _, _ = module(data, teachers(data), 0.0, False)
        loss.backward()

    def whole(module: TrainingStep, optimizer: torch.optim.Optimizer) -> None:
        data = task.augment(task.train.take(indices), uniform(1, indices, DRAWS)) if task.augment else {}
        step(module, data)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    modules = {
        "float": TrainingStep(stage, {"student": plain}, task),
        "quantized": TrainingStep(stage, {"student": compressed}, task),
    }
    found: dict[str, Callable[[], None]] = {}
    for kind, module in modules.items():
        module.train()
        optimizer = SGD(0.01).build(parameter_groups(module.named_parameters(), SGD()))

        def bare(module: TrainingStep = module) -> None:
            module.zero_grad(set_to_none=True)
            step(module, batch)

        def full(module: TrainingStep = module, optimizer: torch.optim.Optimizer = optimizer) -> None:
            whole(module, optimizer)

        found[kind], found[f"{kind}, whole step"] = bare, full
    return found


def measure(functions: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of each function in each turn; the first two turns are warm-up and are dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 2):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "step_overhead.json")
    arguments = parser.parse_args()
    rows = []
    for precision in ("float32", "bf16"):
        for name in ("polino-student-1", "polino-student-2"):
            for bits, grain in SETTINGS[precision]:
                functions = variants(name, bits, GRANULARITIES[grain], precision, arguments.batch_size)
                seconds = measure(functions, arguments.turns)
                base = seconds["float"]
                ratio = {k: statistics.median(a / b for a, b in zip(v, base, strict=True)) for k, v in seconds.items()}
                rows.append({
                    "student": name, "precision": precision, "bits": bits, "granularity": grain,
                    "float_ms": 1000 * statistics.median(base),
                    "compression": ratio["quantized"],
                    "whole_step": ratio["quantized, whole step"],
                    "float_whole_step": ratio["float, whole step"],
                })  # fmt: skip
                print(rows[-1], flush=True)
    result = {
        "command": "python benchmarks/step_overhead.py",
        "batch_size": arguments.batch_size,
        "rows": rows,
        **environment(),
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        "| student | precision | bits | scales per | unavoidable, ms | compression | whole float step | whole quantized step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['student']} | {r['precision']} | {r['bits']} | {r['granularity']} | {r['float_ms']:.0f} "
        f"| {r['compression']:.3f} "
        f"| {r['float_whole_step']:.3f} | {r['whole_step']:.3f} |"
        for r in rows
    ]
    arguments.result.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
