"""Benchmarks: networks timed in turns, each in its own process, so that any disturbance affects all alike."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from bitstill.artifact.format import CONFIG, WEIGHTS
from bitstill.artifact.reader import read
from bitstill.deliver import bench_worker
from bitstill.deliver.deliver import environment
from bitstill.errors import ArtifactError, SpecError
from bitstill.program.convnets import CONV_NETS
from bitstill.program.from_artifact import program_of
from bitstill.program.samples import Array, random_inputs
from bitstill.runtime.library import processors

FILES = {"onnx": "model.onnx", "openvino": "model.bin", "openvino-bf16": "model.bin"}
"""File of weights by kind, for exports without model.safetensors."""
KINDS = {
    "native": "bitstill.runtime", "torch-kernels": "torch, kernels", "bitstill": "torch, packed", "onnx": "ONNX Runtime",
    "openvino": "OpenVINO", "openvino-bf16": "OpenVINO, bfloat16", "torch": "torch", "torch-bf16": "torch, bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network to be timed.

    Args:
        folder: its folder.
        kind: a key of `KINDS`.
        config: contents of its config.json.
        name: its name in tables; the folder's if empty.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    name: str = ""

    @property
    def file(self) -> Path:
        """The file with its weights."""
        return self.folder / FILES.get(self.kind, WEIGHTS)


def bench(
    folders: Sequence[str | Path],
    *,
    batch: Sequence[int] = (1, 8),
    length: Sequence[int] = (16, 128),
    threads: int | None = None,
    turns: int = 40,
    progress: bool = True,
) -> dict[str, Any]:
    """Time artifacts, their exports and float networks, in turns.

    Args:
        folders: artifacts, timed in `bitstill.runtime` and in torch; exports to ONNX or OpenVINO; or Hugging Face folders of
            float encoders. The first is the reference for ratios.
        batch: batch sizes.
        length: lengths of texts in tokens; ignored for images.
        threads: threads of each network; None uses all cores.
        turns: number of timed runs of each network at each batch size and length, after a warm-up.
        progress: show a progress bar.

    Returns:
        Rows with bytes, seconds to load, peak memory including loading, and for each point ("1 x 16") the median, the 10th and
        the 90th percentile in ms, samples per second, and the median ratio to the first row; and the hardware.

    Raises:
        ArtifactError: a folder holds no known network, or it cannot be loaded.
        SpecError: numbers below 1, or networks with different inputs.
    """
    networks = [network for folder in folders for network in networks_in(Path(folder))]
    return race(networks, batch, length, threads=threads, turns=turns, progress=progress)


def race(
    networks: Sequence[Network],
    batches: Sequence[int],
    lengths: Sequence[int],
    *,
    threads: int | None = None,
    turns: int = 40,
    progress: bool = True,
) -> dict[str, Any]:
    """Time networks in turns; returns the same as `bench`.

    Raises:
        ArtifactError, SpecError: as `bench`.
    """
    threads = threads or processors()
    for name, numbers in (("batch", batches), ("length", lengths), ("threads", [threads]), ("turns", [turns])):
        if not numbers or min(numbers) < 1:
            raise SpecError(f"{name} of at least 1", given=str(list(numbers)), where="bench", fix="Give whole numbers above 0.")
    if len({json.dumps(_takes(network.config)) for network in networks}) > 1:
        given = ", ".join(sorted({str(_takes(network.config)) for network in networks}))
        raise SpecError("networks with the same inputs", given=given, where="bench", fix="Time them in separate commands.")
    texts = "model_type" in networks[0].config
    points = [(batch, length) for batch in batches for length in (lengths if texts else (0,))]
    with _Workers(networks, threads) as workers:
        seconds = _in_turns(workers, points, turns, progress)
        peaks = workers.ended()
    rows = []
    folder_names = Counter(folder.name for folder in {network.folder for network in networks})
    for place, network in enumerate(networks):
        short = network.folder.name if folder_names[network.folder.name] == 1 else str(network.folder)
        figures = {_name(point): _point(seconds[point][place], seconds[point][0], point[0]) for point in points}
        rows.append(
            {
                "name": network.name or short,
                "kind": KINDS[network.kind],
                "file_bytes": network.file.stat().st_size,
                "load_seconds": workers.load_seconds[place],
                "peak_bytes": peaks[place],
                "points": figures,
            }
        )
    return {"threads": threads, "turns": turns, "rows": rows, **environment()}


class _Workers:
    """One process for each network; all end with the block."""

    def __init__(self, networks: Sequence[Network], threads: int) -> None:
        self.networks, self.threads = networks, threads
        self.pipes: list[Connection] = []
        self.load_seconds: list[float] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Workers:
        try:
            for network in self.networks:
                parent_end, child_end = multiprocessing.Pipe()
                # Not multiprocessing's own processes: those run the caller's script again, unless it has a main guard.
                arguments = [str(child_end.fileno()), str(network.folder), network.kind, str(self.threads)]
                command = [sys.executable, "-P", "-m", bench_worker.__name__, *arguments]
                variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
                self._processes.append(subprocess.Popen(command, pass_fds=[child_end.fileno()], env=variables))  # noqa: S603
                child_end.close()
                self.pipes.append(parent_end)
                answer = _received(parent_end, network)
                if "error" in answer:
                    fix = "Nothing was timed."
                    raise ArtifactError("a network that loads", given=answer["error"], where=str(network.folder), fix=fix)
                self.load_seconds.append(answer["load_seconds"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()

    def time(self, place: int, values: Mapping[str, Array]) -> float:
        """Seconds of one run."""
        self.pipes[place].send(values)
        return float(_received(self.pipes[place], self.networks[place]))

    def ended(self) -> list[int | None]:
        """Stop all processes; returns the peak memory of each in bytes, where the system reports it."""
        for pipe in self.pipes:
            pipe.send(None)
        return [_received(pipe, network) for pipe, network in zip(self.pipes, self.networks, strict=True)]


def _in_turns(
    workers: _Workers, points: Sequence[tuple[int, int]], turns: int, progress: bool
) -> dict[tuple[int, int], list[list[float]]]:
    """Seconds by point, network and turn; the order alternates, so that no network always follows the same one."""
    places = range(len(workers.networks))
    seconds: dict[tuple[int, int], list[list[float]]] = {point: [[] for _ in places] for point in points}
    with tqdm(total=len(points) * turns, desc="timing", unit="turn", leave=False, disable=not progress) as bar:
        for point in points:
            values = [random_inputs(network.config, *point) for network in workers.networks]
            for turn in range(turns):
                for place in places if turn % 2 else reversed(places):
                    seconds[point][place].append(workers.time(place, values[place]))
                bar.update()
    return seconds


def _received(pipe: Connection, network: Network) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        fix = "It may have run out of memory, or its package may be missing; see its own message above."
        raise ArtifactError("a network that runs", given="a process that ended", where=str(network.folder), fix=fix) from None


def networks_in(folder: Path) -> list[Network]:
    """Networks to time for a folder: an artifact counts once per way to run it, if the runtime without torch supports it."""
    network = _network(folder)
    if network.kind != "bitstill":
        return [network]
    try:
        program_of(read(folder))
    except ArtifactError:  # damaged, or without a program: loading reports it
        return [network]
    return [replace(network, kind="native"), replace(network, kind="torch-kernels"), network]


def _network(folder: Path) -> Network:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    is_artifact = isinstance(config, dict) and config.get("quantization_config", {}).get("quant_method") == "bitstill"
    if isinstance(config, dict) and ("model_type" in config or config.get("architecture") in CONV_NETS):
        exported = next((kind for kind, file in FILES.items() if (folder / file).is_file()), None)
        kind = exported or ("bitstill" if is_artifact else "torch")
        network = Network(folder, kind, config)
        if network.file.is_file() and (kind != "torch" or "model_type" in config):
            return network
    fix = "Name an artifact, an export of one, or a Hugging Face folder with model.safetensors."
    raise ArtifactError("the folder of a network", given="no known kind", where=str(folder), fix=fix)


def _takes(config: dict[str, Any]) -> Any:
    if "model_type" in config:
        return {"texts with a vocabulary of": config["vocab_size"]} if "vocab_size" in config else config["model_type"]
    (image,) = CONV_NETS[config["architecture"]](config["arguments"]).inputs
    return {image.name: image.shape}


def _name(point: tuple[int, int]) -> str:
    return f"{point[0]} x {point[1]}" if point[1] else str(point[0])


def _point(own: Sequence[float], first: Sequence[float], batch: int) -> dict[str, float]:
    ordered = sorted(own)
    median = statistics.median(own)
    return {
        "ms": 1000 * median,
        "ms_10": 1000 * ordered[len(own) // 10],
        "ms_90": 1000 * ordered[(9 * (len(own) - 1)) // 10],
        "per_second": batch / median,
        "ratio": statistics.median(a / b for a, b in zip(own, first, strict=True)),
    }
