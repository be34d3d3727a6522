"""One network in a process of its own, run when it is asked to: so that memory and threads of several are not mixed up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.errors import BitstillError

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], object]
Load = Callable[[Path], Run]
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def serve(pipe: Connection, folder: str, kind: str, threads: int) -> None:
    """Load a network, say how long that took, and then time it on whatever inputs come through the pipe; None ends it.

    Args:
        pipe: to whoever compares.
        folder: of the network.
        kind: "onnx", "bitstill" or "torch".
        threads: that it may use.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    try:
        load = {"onnx": _onnx, "bitstill": _bitstill, "torch": _torch}[kind](threads)
        before = _from_now_on()
        started = time.perf_counter()
        run = load(Path(folder))
        pipe.send({"load_seconds": time.perf_counter() - started})
    except BitstillError as error:
        pipe.send({"error": str(error)})
        return
    while (values := pipe.recv()) is not None:
        run(values)  # wakes threads, and brings weights back into the caches
        started = time.perf_counter()
        run(values)
        pipe.send(time.perf_counter() - started)
    peak = _memory("VmHWM")
    pipe.send(None if before is None or peak is None else max(0, peak - before))


def _onnx(threads: int) -> Load:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3

    def load(folder: Path) -> Run:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        return lambda values: session.run(None, {name: values[name] for name in names})

    return load


def _bitstill(threads: int) -> Load:
    from bitstill.api import load as load_artifact

    return _in_torch(threads, load_artifact)


def _torch(threads: int) -> Load:
    from bitstill.hf.models import classifier_in

    return _in_torch(threads, classifier_in)


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


def _from_now_on() -> int | None:
    """Resident bytes; the peak is counted anew from here, where the system can do that."""
    try:
        RESET.write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


def _memory(what: str) -> int | None:
    """A line of the process's status, in bytes."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    except (OSError, StopIteration):
        return None
    return 1024 * int(line.split()[1])


def made_up(config: Mapping[str, Any], batch: int, length: int) -> dict[str, Array]:
    """Random inputs for a network, from its config.json: texts without padding, pictures or spectrograms.

    Args:
        config: of an encoder of transformers, or of one of bitstill's own networks.
        batch: texts or pictures.
        length: of each text in tokens; nothing else has one.
    """
    draw = np.random.default_rng(0)
    if "model_type" not in config:
        from bitstill.export.convnets import CONV_NETS

        (given,) = CONV_NETS[config["architecture"]](config["arguments"]).inputs
        free = {"batch": batch, "height": 32, "width": 32, "frames": 100, "bands": 40}
        shape = [free[size] if isinstance(size, str) else size for size in given.shape]
        return {given.name: draw.standard_normal(shape).astype(np.float32)}
    ids = draw.integers(min(1_000, config["vocab_size"] // 2), config["vocab_size"], (batch, length))
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if config.get("type_vocab_size"):
        values["token_type_ids"] = np.zeros_like(ids)
    return values
