"""Benchmark process of one network, so that networks share neither memory nor threads."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bitstill.errors import BitstillError

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], object]
Load = Callable[[Path], Run]
PAUSE = 0.03
"""Seconds before a turn: idle threads of other networks keep spinning for a while."""
WARM, ENOUGH = 3, 0.1
"""Warm-up calls before the timed one, and the seconds after which they end early."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Serve the connection whose file descriptor is the first argument: what `bench` starts."""
    descriptor, folder, kind, threads = sys.argv[1:]
    serve(Connection(int(descriptor)), folder, kind, int(threads))


def serve(pipe: Connection, folder: str, kind: str, threads: int) -> None:
    """Load a network, report the time taken, then time it on the inputs received through the pipe; None ends the process.

    Args:
        pipe: connection to the parent process.
        folder: folder of the network.
        kind: a key of `bench.KINDS`.
        threads: number of threads to use.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    try:
        load = _LOADERS[kind](threads)
        before = _reset_peak()
        started = time.perf_counter()
        run = load(Path(folder))
        pipe.send({"load_seconds": time.perf_counter() - started})
    except BitstillError as error:
        pipe.send({"error": str(error)})
        return
    while (values := pipe.recv()) is not None:
        time.sleep(PAUSE)
        warm_up_started = time.perf_counter()
        for _ in range(WARM):  # wakes threads, and reloads weights into the caches
            run(values)
            if time.perf_counter() - warm_up_started > ENOUGH:
                break
        started = time.perf_counter()
        run(values)
        pipe.send(time.perf_counter() - started)
    peak = _memory("VmHWM")
    pipe.send(None if before is None or peak is None else max(0, peak - before))


def _onnx(threads: int) -> Load:
    import onnxruntime  # noqa: F401  # its import must not count as loading the network

    from bitstill.exporters.onnx.session import open_session

    return lambda folder: open_session(folder / "model.onnx", threads)


def _openvino(threads: int, precision: str = "f32") -> Load:
    import openvino  # noqa: F401

    from bitstill.exporters.openvino import open_model

    return lambda folder: open_model(folder / "model.xml", threads, precision)


def _bitstill(threads: int) -> Load:
    from bitstill.deliver.load import load as load_artifact

    return _in_torch(threads, load_artifact)


def _torch_kernels(threads: int) -> Load:
    from bitstill.deliver.load import load as load_artifact

    return _in_torch(threads, lambda folder: load_artifact(folder, kernels=True))


def _native(threads: int) -> Load:
    from bitstill.runtime import load as load_artifact

    def load(folder: Path) -> Run:
        model = load_artifact(folder, threads=threads)
        return lambda values: model(**values)

    return load


def _torch(threads: int) -> Load:
    from bitstill.hf.pretrained import load_float_classifier

    return _in_torch(threads, load_float_classifier)


def _torch_bf16(threads: int) -> Load:
    from bitstill.hf.pretrained import load_float_classifier

    return _in_torch(threads, lambda folder: load_float_classifier(folder).bfloat16())


def _in_torch(threads: int, build: Callable[[Path], Any]) -> Load:
    import torch

    torch.set_num_threads(threads)

    def load(folder: Path) -> Run:
        model = build(folder)
        by_name = "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))

        def run(values: Mapping[str, Array]) -> object:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(value) for name, value in values.items()}
                return model(**tensors) if by_name else model(*tensors.values())

        return run

    return load


_LOADERS: dict[str, Callable[[int], Load]] = {
    "native": _native, "torch-kernels": _torch_kernels, "bitstill": _bitstill, "onnx": _onnx, "openvino": _openvino,
    "openvino-bf16": partial(_openvino, precision="bf16"), "torch": _torch, "torch-bf16": _torch_bf16,
}  # fmt: skip


def _reset_peak() -> int | None:
    """Restart the measurement of peak memory; returns the resident bytes, or None if the system cannot do that."""
    try:
        RESET.write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


def _memory(field: str) -> int | None:
    """A field of the process's status, in bytes."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    except (OSError, StopIteration):
        return None
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
