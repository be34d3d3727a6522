"""The identity of a run, which its checkpoint records and which is compared on resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bitstill.data.objective import Objective
from bitstill.model.state import state_digest
from bitstill.train.run import Data
from bitstill.train.settings import Settings, hardware_identity
from bitstill.train.stage import Stage, source_name

HARDWARE = ("device", "processes", "teacher_bf16")
"""Keys that affect the bytes of a run, but not what it learns."""


def identity_of(
    recipe: Any, stages: Sequence[Stage], data: Data, networks: Mapping[str, nn.Module], settings: Settings
) -> dict[str, Any]:
    """Recipe, stages, objectives, every byte of data and models, seed and hardware, as plain values.

    Args:
        recipe: its settings as plain values.
        stages, data, networks, settings: those of the run, before training.
    """
    return {
        "recipe": recipe,
        "stages": [stage.name for stage in stages],
        "data": {source_name(source): task.train.digest() for source, task in data.items()},
        "objectives": {source_name(source): _objective(task.objective) for source, task in data.items()},
        "models": {name: state_digest(network) for name, network in networks.items()},
        "seed": settings.seed,
        "precision": settings.precision,
        "accumulate": settings.accumulate,
        **hardware_identity(settings),
    }


def _objective(objective: Objective) -> dict[str, Any]:
    """The parts of an objective that shape training: its loss on labels, and the metric that selects weights."""
    loss = objective.label_loss()
    described = repr(loss) if dataclasses.is_dataclass(loss) else type(loss).__name__
    return {"kind": type(objective).__name__, "label_loss": described, "decides": objective.decides}
