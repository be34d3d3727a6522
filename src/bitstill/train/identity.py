"""What makes a run this run and no other; a checkpoint carries it, and resuming compares it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bitstill.train.loop import Settings, hardware_identity
from bitstill.train.stage import Stage
from bitstill.train.task import Task


def identity_of(
    recipe: Any, stages: Sequence[Stage], task: Task, networks: Mapping[str, nn.Module], settings: Settings
) -> dict[str, Any]:
    """Recipe, stages, every byte of data and models, seed and hardware, as plain values.

    Args:
        recipe: as plain values.
        stages, task, networks, settings: of the run, before it trains.
    """
    return {
        "recipe": recipe,
        "stages": [stage.name for stage in stages],
        "task": task.name,
        "data": task.train.digest(),
        "models": {name: digest(network) for name, network in networks.items()},
        "seed": settings.seed,
        "precision": settings.precision,
        "accumulate": settings.accumulate,
        **hardware_identity(settings),
    }


def digest(network: nn.Module) -> str:
    """Of every name, shape and byte of a network's state."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in network.state_dict().items():
        state.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
