"""Everything that matters, in one safetensors file, written beside and renamed.

One file, so that there is no moment at which two files disagree. Each shared tensor is stored once, by identity, and restored
in place, so that ties survive. Its single metadata key is canonical JSON, because several keys are written in random order.
The metadata hold the SHA-256 of the whole file, taken with zeros in the place of the digest: any other byte is refused.
Nothing is pickled.
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
    """Where a run is.

    Args:
        stage: index of the stage under way (or about to begin, at step 0).
        step: optimizer steps of it that are done.
        begun: whether that stage's `begin` actions have been applied.
        history: what has been logged.
        decisions: what actions have chosen by looking at numbers, as plain values, by stage and place.
        losses: of the steps since the last entry of `history`.
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
        step: when.
        value: the metric on the validation split.
        tensors: copies, by "model/parameter".
    """

    step: int
    value: float
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, models: Mapping[str, nn.Module], step: int, value: float) -> Best:
        """Copies of everything in `models` that a checkpoint would hold."""
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
        optimizer: of the stage under way, or None between stages.
        position: where the run is.
        identity: what makes it this run and no other (recipe, data, seed); resuming compares it.
        best: the best weights of the stage under way, where they are kept.

    Raises:
        ArtifactError: the place cannot be written or is full; an older checkpoint there is kept.
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
    """A checkpoint that has been read.

    Args:
        path: the file.
        identity: of the run that wants to continue.

    Raises:
        CheckpointError: if the file is damaged, of another version, or of another run.
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
                fix="Delete it to start again; checkpoints are written beside and renamed, so this one was damaged later.",
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
        kept = {name.removeprefix("best/"): t for name, t in self.tensors.items() if name.startswith("best/")}
        self.best = None if content["best"] is None else Best(**content["best"], tensors=kept)

    def restore_models(self, models: Mapping[str, nn.Module]) -> None:
        """Load every tensor in place. Learned points may have another number of elements than before.

        Raises:
            CheckpointError: if the models are not the ones that were saved.
        """
        slots = dict(_unique(models))
        stored = {name.removeprefix("models/"): t for name, t in self.tensors.items() if name.startswith("models/")}
        if slots.keys() != stored.keys():
            raise CheckpointError(
                f"{len(slots)} tensors of the models",
                given=f"{len(stored)}; only in one of both: {sorted(slots.keys() ^ stored.keys())[:4]}",
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
        """Load momentum and whatever else the optimizer keeps."""
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
    """Where the run that delivers to `target` keeps its checkpoint."""
    return target.with_name(f".{target.name}.checkpoint.safetensors")


def checkpoint_beside(target: Path, resume: bool) -> Path:
    """`checkpoint_of`, for a run that begins or continues.

    Raises:
        CheckpointError: one is there and is not meant to be continued.
    """
    path = checkpoint_of(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not resume:
        raise CheckpointError(
            "a new run",
            given="the checkpoint of one that was stopped",
            where=str(path),
            fix="Continue it with resume=True (--resume), or delete the checkpoint to start again.",
        )
    return path


def _unique(models: Mapping[str, nn.Module]) -> Iterable[tuple[str, Tensor]]:
    """Parameters and persistent buffers of all models by their first name, each shared one once."""
    seen: set[int] = set()
    for model_name, model in models.items():
        for name, tensor in stored_tensors(model).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{model_name}/{name}", tensor


def _signed(data: bytes) -> tuple[bytes, bytes, memoryview]:
    """A file in three parts, of which the second is the digest in its header."""
    start = data.index(_NO_DIGEST.encode())
    return data[:start], hashlib.sha256(data).hexdigest().encode(), memoryview(data)[start + len(_NO_DIGEST) :]


def _check_digest(path: Path, digest: str) -> None:
    """Compare the bytes of a file with the digest in its header.

    Raises:
        ValueError: they are not those that were written.
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
    """Dotted keys whose values differ, with both values; None stands for one that is absent."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in sorted(saved.keys() | current.keys()):
            yield from _differences(saved.get(key), current.get(key), f"{place}.{key}" if place else key)
    elif saved != current:
        yield place, saved, current


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
