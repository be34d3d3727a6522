"""Cost of an XTC step on all-MiniLM-L6-v2, interleaved with the unavoidable work and with DeepSpeed.

    python benchmarks/transformer_step.py                 # writes benchmarks/results/transformer_step.json and .md

`unavoidable` is the teacher's forward pass plus forward and backward of a float student; `fine-tuning` is the latter alone.
`XTC` is bitstill's training step at 1 bit with 8-bit inputs: hidden states, attention scores and logits. DeepSpeed is included
if it can be imported (DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed==0.19.6; later versions have no compression).
It quantizes the same matrices and word embeddings, with the same three losses, written out as in its example. All run in turns
in one float32 process; a figure is the median over turns of the ratio within a turn. Batches are texts of SST-2 of similar
length. The optimizer's step, the same for all, is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import bitstill
from bitstill.data.task import Batch, Task
from bitstill.deliver.deliver import environment
from bitstill.deliver.load_task import task_for
from bitstill.hf.pretrained import load_pretrained
from bitstill.recipes.recipe import RunContext
from bitstill.train.sampler import Sampler
from bitstill.train.step import TrainingStep
from bitstill.train.teachers import Teachers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from rows import data, minilm  # noqa: E402

CPU = torch.device("cpu")
Step = Callable[[Batch], None]


def plain_steps(teacher: nn.Module, task: Task) -> dict[str, Step]:
    """Fine-tuning steps of a float copy, without and with the teacher's forward pass."""
    student = copy.deepcopy(teacher).train()
    student.set_attn_implementation("sdpa")
    frozen = copy.deepcopy(teacher).eval()
    frozen.set_attn_implementation("sdpa")

    def fine_tuning(batch: Batch) -> None:
        F.cross_entropy(task.outputs(student, batch), batch["labels"]).backward()
        student.zero_grad(set_to_none=True)

    def unavoidable(batch: Batch) -> None:
        with torch.inference_mode():
            task.outputs(frozen, batch)
        fine_tuning(batch)

    return {"unavoidable": unavoidable, "fine-tuning": fine_tuning}


def xtc_step(teacher: nn.Module, task: Task, recipe: bitstill.recipes.XTC) -> Step:
    """Training step of bitstill, without the optimizer."""
    models = {"teacher": teacher}
    (stage,) = recipe.stages(RunContext(task.objective, models))
    for action in stage.begin:
        action.apply(models, task, 0)
    module = TrainingStep(stage, models, task).train()
    teachers = Teachers(stage, models, task, CPU, bf16=False)

    def step(batch: Batch) -> None:
        loss, _, _ = module(batch, teachers(batch), 0.0, False)
        loss.backward()
        module.zero_grad(set_to_none=True)

    return step


def deepspeed_step(teacher: nn.Module) -> Step | None:
    """Same step with DeepSpeed's compressed layers and the losses of its example; None without DeepSpeed."""
    try:
        from deepspeed.compression.compress import init_compression
        from deepspeed.compression.config import get_compression_config
        from deepspeed.compression.scheduler import compression_scheduler
    except ImportError:
        return None
    groups = {"params": {"start_bits": 1, "target_bits": 1, "quantization_period": 0}}
    modules = ["attention.self", "intermediate", "word_embeddings", "output.dense"]
    shared = {"enabled": True, "quantization_type": "symmetric", "schedule_offset": 0}
    weights = {
        "shared_parameters": {**shared, "quantize_weight_in_forward": True, "quantize_groups": 1, "rounding": "nearest"},
        "different_groups": {"wq1": {**groups, "modules": modules}},
    }
    inputs = {
        "shared_parameters": {**shared, "range_calibration": "dynamic"},
        "different_groups": {
            "aq1": {"params": {"bits": 8}, "modules": ["attention.self", "intermediate", "output.dense"]},
        },
    }
    config = {
        "train_batch_size": 32,
        "compression_training": {"weight_quantization": weights, "activation_quantization": inputs},
    }
    frozen = copy.deepcopy(teacher).eval()
    frozen.set_attn_implementation("eager")
    student = copy.deepcopy(frozen).train()
    init_compression(student, config)
    compression_scheduler(student, get_compression_config(config)).step()

    def run(model: nn.Module, batch: Batch) -> Any:
        names = ("input_ids", "token_type_ids", "attention_mask")
        return model(**{n: batch[n].long() for n in names}, output_hidden_states=True, output_attentions=True)

    def step(batch: Batch) -> None:
        with torch.no_grad():
            theirs = run(frozen, batch)
        ours = run(student, batch)
        loss = -(theirs.logits.softmax(-1) * ours.logits.log_softmax(-1)).mean()
        for one, other in zip(
            (*ours.hidden_states, *ours.attentions), (*theirs.hidden_states, *theirs.attentions), strict=True
        ):
            loss = loss + F.mse_loss(one, other)
        loss.backward()
        student.zero_grad(set_to_none=True)

    return step


def measure(steps: dict[str, Step], task: Task, turns: int, batch_size: int) -> dict[str, list[float]]:
    """Seconds of each step in each turn, on the same batch within a turn, after three warm-up turns."""
    sampler = Sampler(task.train, batch_size, "benchmark")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 3):
        batch = task.train.take(sampler(turn))
        for name, step in steps.items():
            started = time.perf_counter()
            step(batch)
            if turn >= 3:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Run the benchmark and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "transformer_step.json")
    arguments = parser.parse_args()
    data()
    task = task_for("sst2", {"teacher": minilm()})
    teacher = load_pretrained(minilm(), task, "teacher").model
    steps = plain_steps(teacher, task)
    steps["XTC, 1 bit"] = xtc_step(teacher, task, bitstill.recipes.XTC(steps=1))
    steps["XTC, ternary"] = xtc_step(teacher, task, bitstill.recipes.XTC(bits="ternary", steps=1))
    other = deepspeed_step(teacher)
    if other is not None:
        steps["DeepSpeed 0.19.6, 1 bit"] = other
    seconds = measure(steps, task, arguments.turns, arguments.batch_size)
    base = seconds["unavoidable"]
    rows = {
        name: {
            "ms": 1000 * statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, base, strict=True)),
        }
        for name, values in seconds.items()
    }
    result = {"command": "python benchmarks/transformer_step.py", "batch_size": arguments.batch_size, "rows": rows}
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps({**result, **environment()}, indent=1) + "\n")
    lines = ["| step | ms | against unavoidable |", "|---|---|---|"]
    lines += [f"| {name} | {row['ms']:.0f} | {row['ratio']:.2f} |" for name, row in rows.items()]
    arguments.result.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
