"""Checkpoints: the whole state of a run in one safetensors file, written to a temporary name and renamed.

One file, so that two files can never disagree. A shared tensor is stored once, by identity, and restored in place, so that
tied weights stay tied. The metadata is a single key with canonical JSON, because safetensors writes several keys in random
order; it holds the SHA-256 of the whole file, computed with zeros in place of the digest, so that any damaged byte is
detected. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from bitstill.artifact.files import unwritable, write_file
from bitstill.errors import CheckpointError, one_line
from bitstill.model.state import stored_tensors

_KEY = "bitstill_checkpoint"
_VERSION = 5
_DIGEST = "0_sha256"
"""Key of the digest in the content, which is sorted: it stands first."""
_NO_DIGEST = "0" * 64
_CHUNK = 2**20
"""Bytes hashed at a time."""


@dataclass
class Position:
    """Progress of a run.

    Args:
        stage: index of the current stage (or of the next one, at step 0).
        step: optimizer steps of that stage done so far.
        begun: whether that stage's `begin` actions have been applied.
        history: log entries.
        decisions: data-dependent choices of actions, as plain values, by stage and position.
        losses: losses of the steps since the last entry of `history`.
    """

    stage: int = 0
    step: int = 0
    begun: bool = False
    history: list[dict[str, Any]] | None = None
    decisions: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Best:
    """The weights of a stage whose delivered form was judged best so far.

    Args:
        step: step at which they were judged.
        value: their metric on the validation split.
        tensors: copies of them, by "model/parameter".
    """

    step: int
    value: float
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, models: Mapping[str, nn.Module], step: int, value: float) -> Best:
        """Copy everything in `models` that a checkpoint would hold."""
        return cls(step, value, {name: tensor.detach().cpu().clone() for name, tensor in _unique(models)})

    def restore(self, models: Mapping[str, nn.Module]) -> None:
        """Put the weights back, in place."""
        with torch.no_grad():
            for name, tensor in _unique(models):
                tensor.copy_(self.tensors[name])


def save(
    path: Path,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None,
    position: Position,
    identity: Mapping[str, Any],
    best: Best | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        models: every model of the run.
        optimizer: optimizer of the current stage, or None between stages.
        position: progress of the run.
        identity: what identifies the run (recipe, data, seed); compared on resume.
        best: best weights of the current stage so far, if it tracks them.

    Raises:
        ArtifactError: the path cannot be written or the disk is full; an older checkpoint there survives.
    """
    tensors = {f"models/{name}": tensor.detach().cpu().contiguous() for name, tensor in _unique(models)}
    if best is not None:
        tensors |= {f"best/{name}": tensor for name, tensor in best.tensors.items()}
    numbers: dict[str, Any] = {}
    for index, state in ({} if optimizer is None else optimizer.state_dict()["state"]).items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}/{key}"] = value
    content = {
        _DIGEST: _NO_DIGEST,
        "version": _VERSION,
        "identity": dict(identity),
        "stage": position.stage,
        "step": position.step,
        "begun": position.begun,
        "history": position.history or [],
        "decisions": position.decisions,
        "losses": position.losses,
        "optimizer": numbers,
        "best": None if best is None else {"step": best.step, "value": best.value},
    }
    metadata = {_KEY: json.dumps(content, sort_keys=True, separators=(",", ":"))}
    try:
        write_file(path, *_signed(safetensors_bytes(tensors, metadata)))
    except OSError as error:
        raise unwritable(path, error) from None


class Checkpoint:
    """A checkpoint read from disk.

    Args:
        path: the file.
        identity: identity of the run to resume.

    Raises:
        CheckpointError: the file is damaged, of another version, or of another run.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                content = json.loads((file.metadata() or {})[_KEY])
                if content["version"] == _VERSION:
                    _check_digest(path, str(content[_DIGEST]))
                self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise CheckpointError(
                "an intact checkpoint",
                given=one_line(error),
                where=str(path),
                fix="Delete it to start again. Checkpoints are written atomically, so this one was damaged afterwards.",
            ) from None
        if content["version"] != _VERSION:
            raise CheckpointError(
                f"checkpoint version {_VERSION}",
                given=str(content["version"]),
                where=str(path),
                fix="It was written by another version of bitstill: finish it there, or delete it to start again.",
            )
        _compare(content["identity"], json.loads(json.dumps(dict(identity))), path)
        names = ("stage", "step", "begun", "history", "decisions", "losses")
        self.position = Position(*(content[name] for name in names))
        self._numbers: dict[str, Any] = content["optimizer"]
        best_tensors = {name.removeprefix("best/"): t for name, t in self.tensors.items() if name.startswith("best/")}
        self.best = None if content["best"] is None else Best(**content["best"], tensors=best_tensors)

    def restore_models(self, models: Mapping[str, nn.Module]) -> None:
        """Load every tensor in place; learned points may change in number.

        Raises:
            CheckpointError: the models are not those that were saved.
        """
        slots = dict(_unique(models))
        stored = {name.removeprefix("models/"): t for name, t in self.tensors.items() if name.startswith("models/")}
        if slots.keys() != stored.keys():
            raise CheckpointError(
                f"{len(slots)} tensors of the models",
                given=f"{len(stored)}; only in one of the two: {sorted(slots.keys() ^ stored.keys())[:4]}",
                where=str(self.path),
                fix="Resume with the same recipe, models and settings, or delete the checkpoint to start again.",
            )
        with torch.no_grad():
            for name, slot in slots.items():
                if slot.shape == stored[name].shape:
                    slot.copy_(stored[name])
                else:
                    slot.data = stored[name].to(slot.device)

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the optimizer's state, such as momentum."""
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in self.tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                index, _, key = rest.partition("/")
                state.setdefault(int(index), {})[key] = tensor
        for name, value in self._numbers.items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def checkpoint_of(target: Path) -> Path:
    """Path of the checkpoint of the run that delivers to `target`."""
    return target.with_name(f".{target.name}.checkpoint.safetensors")


def checkpoint_beside(target: Path, resume: bool) -> Path:
    """`checkpoint_of`, for a run that starts or resumes.

    Raises:
        CheckpointError: a checkpoint exists and `resume` is False.
    """
    path = checkpoint_of(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not resume:
        raise CheckpointError(
            "a new run",
            given="the checkpoint of an unfinished one",
            where=str(path),
            fix="Resume it with resume=True (--resume), or delete the checkpoint to start again.",
        )
    return path


def _unique(models: Mapping[str, nn.Module]) -> Iterable[tuple[str, Tensor]]:
    """Parameters and persistent buffers of all models; a shared one appears once, under its first name."""
    seen: set[int] = set()
    for model_name, model in models.items():
        for name, tensor in stored_tensors(model).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{model_name}/{name}", tensor


def _signed(data: bytes) -> tuple[bytes, bytes, memoryview]:
    """Split a file into three parts, the second of which is the digest in its header."""
    start = data.index(_NO_DIGEST.encode())
    return data[:start], hashlib.sha256(data).hexdigest().encode(), memoryview(data)[start + len(_NO_DIGEST) :]


def _check_digest(path: Path, digest: str) -> None:
    """Check the bytes of a file against the digest in its header.

    Raises:
        ValueError: they differ.
    """
    with path.open("rb") as file:
        length = file.read(8)
        header = length + file.read(int.from_bytes(length, "little"))
        computed = hashlib.sha256(header.replace(digest.encode(), _NO_DIGEST.encode(), 1))
        while chunk := file.read(_CHUNK):
            computed.update(chunk)
    if computed.hexdigest() != digest:
        raise ValueError(f"bytes of SHA-256 {computed.hexdigest()[:12]}... where {digest[:12]}... was written")


def _compare(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    for key, before, now in _differences(saved, current):
        raise CheckpointError(
            f"a checkpoint of this run ({key} {_short(now)})",
            given=f"{key} {_short(before)}",
            where=str(path),
            fix="Resume with the settings it was started with, or choose another --out.",
        )


def _differences(saved: Any, current: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; None stands for an absent one."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in sorted(saved.keys() | current.keys()):
            yield from _differences(saved.get(key), current.get(key), f"{place}.{key}" if place else key)
    elif saved != current:
        yield place, saved, current


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
