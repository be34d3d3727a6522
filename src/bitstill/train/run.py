"""State of a run: models, data, position and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from bitstill.data.task import Task
from bitstill.errors import SpecError
from bitstill.rng import derive
from bitstill.train import checkpoint
from bitstill.train.checkpoint import Best, Checkpoint, Position
from bitstill.train.settings import Settings
from bitstill.train.stage import Deciding, Source, Stage, replay, source_name

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
Data = Mapping[Source, Task]
"""Data sets of a run by the names that stages use: "task", a corpus, variants of the task's texts."""


def data_for(stage: Stage, data: Data) -> Task:
    """The data set that `stage` learns from.

    Raises:
        SpecError: the run has no such data set.
    """
    if stage.data not in data:
        sets = ", ".join(map(source_name, data)) or "none"
        fix = "Name the task, or pass the data set along with the stages."
        where = f"stage {stage.name!r}"
        raise SpecError(f"the data set {stage.data!r}", given=f"only {sets}", where=where, fix=fix)
    return data[stage.data]


@dataclass
class Run:
    """State of a run.

    Args:
        stages: stages in order.
        models: models by name; stages change them and add to them.
        data: data sets that the stages learn from.
        settings: seed, precision, device and checkpoints.
        accelerator: devices and processes.
        identity: identity of the run, compared on resume.
        checkpoint_path: path of the checkpoint; None writes none.
        position: progress of the run.
        best: best weights of the current stage so far, if it tracks them.
    """

    stages: Sequence[Stage]
    models: dict[str, nn.Module]
    data: Data
    settings: Settings
    accelerator: Accelerator
    identity: Mapping[str, Any]
    checkpoint_path: Path | None
    position: Position = field(default_factory=Position)
    best: Best | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Log entries, oldest first."""
        if self.position.history is None:
            self.position.history = []
        return self.position.history

    def trained_by(self, stage: Stage) -> dict[str, nn.Module]:
        """The models that `stage` trains."""
        return {name: self.models[name] for name in stage.train}

    def begin(self, stage: Stage) -> None:
        """Apply the stage's actions, and write a checkpoint."""
        for place, action in enumerate(stage.begin):
            task, seed = data_for(stage, self.data), derive(self.settings.seed, stage.name)
            if not isinstance(action, Deciding):
                action.apply(self.models, task, seed)
                continue
            decision = self.agree(action.decide(self.models, task, seed))
            action.repeat(self.models, decision)
            self.position.decisions[f"{stage.name}/{place}"] = decision
            self.history.append({"stage": stage.name, "step": 0, "decided": {type(action).__name__: decision}})
        self.position.begun = True
        self.save()

    def finish_stage(self) -> None:
        """Move on to the beginning of the next stage, and write a checkpoint."""
        self.position = Position(self.position.stage + 1, 0, False, self.history, self.position.decisions)
        self.save()

    def save(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Write a checkpoint, on the main process."""
        if self.checkpoint_path is not None and self.accelerator.is_main_process:
            checkpoint.save(self.checkpoint_path, self.models, optimizer, self.position, self.identity, self.best)

    def resume(self) -> Checkpoint | None:
        """Continue from the checkpoint if it exists: rebuild the models' structure, then load their tensors.

        Returns:
            The checkpoint, for the optimizer's state.

        Raises:
            CheckpointError: it is damaged or belongs to another run.
        """
        if self.checkpoint_path is None or not self.checkpoint_path.exists():
            return None
        loaded = Checkpoint(self.checkpoint_path, self.identity)
        self.position = loaded.position
        for stage in self.stages[: self.position.stage + int(self.position.begun)]:
            for place, action in enumerate(stage.begin):
                if isinstance(action, Deciding):
                    action.repeat(self.models, self.position.decisions[f"{stage.name}/{place}"])
                else:
                    replay(action, self.models, data_for(stage, self.data))
        loaded.restore_models(self.models)
        self.best = loaded.best
        return loaded

    def agree(self, value: T) -> T:
        """Broadcast the main process's value: others may differ in the last bit, and must not decide differently."""
        if self.accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        agreed: T = broadcast_object_list([value])[0]
        return agreed
