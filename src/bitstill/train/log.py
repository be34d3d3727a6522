"""Logging of a stage: progress bar, curves, trackers, and the metric of the delivered form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bitstill.data.task import evaluate
from bitstill.errors import TrainingError
from bitstill.model.lifecycle import freeze
from bitstill.train.run import Run, data_for
from bitstill.train.stage import Stage

ENTRIES = 100
"""Number of loss entries logged per stage."""


class StageLog:
    """Progress bar, curves and trackers of one stage; stops a run whose loss is no longer finite.

    Losses since the last entry are part of the checkpoint, so that a resumed run logs what an uninterrupted one does.

    Args:
        run: run whose history is extended.
        stage: current stage.
    """

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run, self.stage, self.task = run, stage, data_for(stage, run.data)
        self.total = stage.total_steps(len(self.task.train))
        self.every = max(1, self.total // ENTRIES)
        self.validate_every = stage.validate_every(len(self.task.train))
        self._losses = [torch.tensor(loss, device=run.accelerator.device) for loss in run.position.losses]
        self._bar: tqdm[int] | None = None

    def steps(self) -> Iterator[int]:
        """Yield the remaining steps, with a progress bar on the main process."""
        left = range(self.run.position.step, self.total)
        shown = self.run.settings.progress and self.run.accelerator.is_main_process
        options = {"total": self.total, "initial": left.start, "desc": self.stage.name, "unit": "step"}
        self._bar = tqdm(left, disable=not shown, mininterval=0.5, leave=False, dynamic_ncols=True, **options)
        yield from self._bar

    def validates(self, step: int) -> bool:
        """Whether the delivered form is evaluated after `step`."""
        return step % self.validate_every == 0 or step == self.total

    def note(self, step: int, loss: Tensor, terms: Mapping[str, Tensor]) -> float | None:
        """Record the loss of a finished step and, when due, the metric of the delivered form on the validation split.

        Args:
            step: counted from 1.
            loss: a scalar.
            terms: each term's own value.

        Returns:
            That metric if it was due, on the main process.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        self._losses.append(loss)
        entry: dict[str, Any] = {"stage": self.stage.name, "step": step}
        if step % self.every == 0 or step == self.total:
            entry["loss"] = float(torch.stack(self._losses).mean())
            self._losses.clear()
            self.check(step, entry["loss"])
            entry |= {name: float(value) for name, value in terms.items()}
        if self.validates(step) and self.run.accelerator.is_main_process:
            entry["validation"] = self._validate()
        if len(entry) > 2:
            self.run.history.append(entry)
            self._show(entry)
        return entry.get("validation")

    def judge(self, step: int) -> float | None:
        """Record and return the metric of the delivered form on the validation split, on the main process."""
        if not self.run.accelerator.is_main_process:
            return None
        value = self._validate()
        self.run.history.append({"stage": self.stage.name, "step": step, "validation": value})
        return value

    def check(self, step: int, loss: float) -> None:
        """Check that a loss is finite.

        Raises:
            TrainingError: it is NaN or infinite; names stage and step.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                "a finite loss",
                given=str(loss),
                where=f"stage {self.stage.name!r}, step {step}",
                fix="Lower the learning rate, or set clip_norm. The last checkpoint precedes this step.",
            )

    def keep_losses(self) -> None:
        """Copy the losses since the last entry into the run's position, which the checkpoint stores."""
        self.run.position.losses = [float(loss) for loss in self._losses]

    def _validate(self) -> float:
        return evaluate(freeze(self.run.models[self.stage.train[0]]), self.task, self.task.validation)

    def _show(self, entry: Mapping[str, Any]) -> None:
        shown = {key: f"{entry[key]:.4g}" for key in ("loss", "validation") if key in entry}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
        if self.run.settings.trackers:
            scalars = {f"{self.stage.name}/{key}": value for key, value in entry.items() if key not in ("stage", "step")}
            self.run.accelerator.log(scalars, step=entry["step"])
