"""A low-bit convolutional student on CIFAR-10 in ONNX Runtime: bytes, agreement with its artifact, latency.

    python benchmarks/onnx_convnet.py                    # writes benchmarks/results/onnx_convnet.json and .md

The second student of Polino et al. (2018) at 1 and 4 bits with one scale per row and 8-bit inputs, trained so briefly that
only bytes, agreement and latency are meaningful. Rows: the same network in float32; that network after ONNX Runtime's
`quantize_dynamic`; the students with inputs quantized per image, exactly as in training, and per tensor. Agreement is measured
on 2,000 images of the published test split. Latencies are measured as in benchmarks/onnx_runtime.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

import bitstill
from bitstill.data.catalogue import load_task
from bitstill.deliver.deliver import environment

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from onnx_runtime import BASE, latencies, session, table  # noqa: E402
from rows import data  # noqa: E402

STUDENT, STEPS, PICTURES, BATCHES = "polino-student-2", 100, 2_000, (1, 16)


def artifacts(work: Path) -> dict[str, Path]:
    """Students by name, trained once."""
    found = {}
    for name, bits in (("float", None), ("1 bit", 1), ("4 bits", 4)):
        found[name] = work / name.replace(" ", "-")
        if not found[name].exists():
            rule: dict[str, Any] = {}
            if bits is not None:
                rule = {"granularity": bitstill.quant.PerChannel(), "input": bitstill.quant.QuantizeInput(per="sample")}
            recipe = bitstill.recipes.QuantizedDistillation(bits, kd_weight=0, steps=STEPS, **rule)
            settings = bitstill.train.Settings(device="cpu")
            bitstill.compress(recipe, "cifar10", {"student": STUDENT}, out=found[name], settings=settings)
    return found


def main() -> None:
    """Run the benchmark and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work" / "onnx_convnet")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=120)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "onnx_convnet.json")
    arguments = parser.parse_args()
    data()
    made, task = artifacts(arguments.work), load_task("cifar10")
    pictures = task.test.take(torch.arange(PICTURES))
    # Inputs of the network, after the task has scaled the images.
    images, true = task.forward(torch.nn.Identity(), pictures).numpy(), pictures["labels"].numpy()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bitstill.export(made["float"], folder / "float")
        session(folder / "float" / "model.onnx", 1, folded=folder / "folded.onnx")
        quantize_dynamic(folder / "folded.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
        files = {"float32": folder / "float" / "model.onnx", BASE: folder / "int8.onnx"}
        origin = {"float32": made["float"]}
        for name in ("1 bit", "4 bits"):
            for activations in ("trained", "per-tensor"):
                row = f"{name}, inputs {'as trained' if activations == 'trained' else 'per tensor'}"
                bitstill.export(made[name], folder / row, activations=activations)
                files[row], origin[row] = folder / row / "model.onnx", made[name]
        sessions = {row: session(path, arguments.threads) for row, path in files.items()}
        sizes = {row: path.stat().st_size for row, path in files.items()}
        given = next(iter(sessions.values())).get_inputs()[0].name
        seconds = {batch: latencies(sessions, {given: images[:batch]}, arguments.turns) for batch in BATCHES}
        labels = {row: np.concatenate([each.run(None, {given: part})[0] for part in np.split(images, 20)]).argmax(-1)
                  for row, each in sessions.items()}  # fmt: skip
    rows: dict[str, dict[str, Any]] = {}
    for row in sessions:
        own = None
        if row in origin:
            with torch.inference_mode():
                own = bitstill.load(origin[row])(torch.from_numpy(images)).argmax(-1).numpy()
        times = {f"batch {batch}": (seconds[batch][row], seconds[batch][BASE]) for batch in BATCHES}
        rows[row] = {
            "accuracy": 100 * float((labels[row] == true).mean()),
            "agreement": None if own is None else 100 * float((labels[row] == own).mean()),
            "file_bytes": sizes[row],
            "artifact_bytes": (origin[row] / "model.safetensors").stat().st_size if row in origin else None,
            "ms": {point: 1000 * statistics.median(both[0]) for point, both in times.items()},
            "ratio": {p: statistics.median(a / b for a, b in zip(*both, strict=True)) for p, both in times.items()},
        }
    about = {
        "command": "python benchmarks/onnx_convnet.py",
        "onnxruntime": onnxruntime.__version__,
        "threads": arguments.threads,
    }
    arguments.result.write_text(json.dumps({**about, "rows": rows, **environment()}, indent=1) + "\n")
    arguments.result.with_suffix(".md").write_text(table(rows))
    print(table(rows), end="")


if __name__ == "__main__":
    main()
