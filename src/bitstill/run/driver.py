"""The one driver: every run from its models and data to its report.

Compressing, fine-tuning and general distillation differ in their recipe, which says what is trained, and in their delivery,
which says what is left of it. Everything else happens here, in this order: load the task and the models, plan the stages,
prepare their data, rehearse them on copies, train, deliver, report. A run that was stopped continues from its checkpoint; one
that is finished is recognised by its identity.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from bitstill.artifact.files import only_writer, remove_leftovers
from bitstill.artifact.format import REPORT
from bitstill.data.objectives import MeanStates
from bitstill.data.task import Task, with_class_weights
from bitstill.decode import encode
from bitstill.deliver.deliver import environment
from bitstill.deliver.load_task import task_for
from bitstill.errors import SpecError
from bitstill.recipes.recipe import RunContext
from bitstill.run.checks import check_model, check_trained, rehearse
from bitstill.run.job import Job
from bitstill.run.models import ResolvedModels, resolve_models
from bitstill.run.stage_data import stage_data
from bitstill.train.checkpoint import checkpoint_beside, checkpoint_of
from bitstill.train.identity import HARDWARE, identity_of
from bitstill.train.loop import train
from bitstill.train.run import Data
from bitstill.train.settings import accelerator
from bitstill.train.stage import Stage


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first step.

    Args:
        job: what was asked for.
        models: the networks by role, which training changes and adds to.
        stages: in order.
        data: what they learn from.
        rehearsed: copies of the networks with the structure that they will have at the end.
    """

    job: Job
    models: ResolvedModels
    stages: tuple[Stage, ...]
    data: Data
    rehearsed: dict[str, nn.Module]

    @property
    def task(self) -> Task:
        """What the delivered model is judged on: the task, or what the last stage has learned from."""
        return self.data["task"] if "task" in self.data else self.data[self.stages[-1].data]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return self.models.networks

    def identity(self) -> dict[str, Any]:
        """What makes this run this run and no other."""
        return identity_of(encode(self.job.recipe), self.stages, self.data, self.networks, self.job.settings)


class Delivery(Protocol):
    """What is left of a run."""

    def check_place(self, out: Path, stopped: bool) -> None:
        """Refuse, before anything is loaded, a place that cannot take it.

        Args:
            out: the place.
            stopped: a run that was stopped is continued, whose beginning has found the place good.

        Raises:
            BitstillError: saying what to do instead.
        """

    def check(self, run: PreparedRun, out: Path) -> None:
        """Refuse, before anything trains, a model that cannot be delivered so.

        Raises:
            BitstillError: saying what to do instead.
        """

    def stage_finished(self, run: PreparedRun, out: Path, stage: Stage, report: Mapping[str, Any]) -> None:
        """Deliver what a stage leaves, where that is wanted; called again if the run is stopped before its next checkpoint."""

    def write(self, run: PreparedRun, out: Path, report: Mapping[str, Any]) -> None:
        """Deliver to `out`, in one step, with `report` and what has been measured on what was read back."""


def prepare_run(job: Job, out: Path, *, untrained: bool = False) -> PreparedRun:
    """Load everything, plan the stages and rehearse them: whatever can be refused is refused here.

    Args:
        job: what to do.
        out: where the result goes; a tokenized corpus is kept beside it.
        untrained: allow a student with random weights that no stage trains, where only its size is asked for.

    Raises:
        BitstillError: its subclasses say what was wrong.
    """
    task = job.task
    if isinstance(task, str):
        task = task_for(task, job.models, job.data, job.text, augmented=job.augmented)
    if task is not None and job.class_weights is not None:
        task = with_class_weights(task, job.class_weights)
    models = resolve_models(job.recipe, job.models, job.settings.seed, task)
    if task is not None:
        for name, network in models.networks.items():
            check_model(name, network, task)
    objective = MeanStates() if task is None else task.objective
    stages = job.recipe.stages(RunContext(objective, models.networks, models.untrained))
    if not untrained:
        check_trained(stages, models)
    data = stage_data(job, stages, task, models, out)
    return PreparedRun(job, models, stages, data, rehearse(stages, models.networks, data))


def execute(job: Job, delivery: Delivery, out: Path, *, resume: bool = False, keep: bool = True) -> PreparedRun:
    """Carry out a run.

    Args:
        job: what to do.
        delivery: what is left of it.
        out: where.
        resume: continue from the checkpoint beside `out`, if there is one; a result of this very run is left as it is.
        keep: write checkpoints.

    Returns:
        The run, whose networks are as training left them; `out` holds its report.

    Raises:
        BitstillError: its subclasses say what was wrong; nothing at `out` is damaged.
    """
    from accelerate import PartialState

    finished = resume and (out / REPORT).is_file()
    stopped = resume and checkpoint_of(out).exists()
    if not finished:
        delivery.check_place(out, stopped)
    accelerator(replace(job.settings, trackers=()))  # settles the device, before anything asks for it
    processes = PartialState()
    with only_writer(out) if processes.is_main_process else contextlib.nullcontext():
        if processes.is_main_process:
            remove_leftovers(out)
        started = time.perf_counter()
        checkpoint = checkpoint_beside(out, resume) if keep else None
        run = prepare_run(job, out)
        delivery.check(run, out)
        identity = run.identity()
        if finished and not stopped:
            _check_result(out, identity)
        if not (finished and _differing(out, identity) is None):
            about = _about(run, identity)
            history = train(
                run.stages, run.networks, run.data, job.settings,
                identity=identity, checkpoint_path=checkpoint, resume=resume,
                finished=lambda stage: delivery.stage_finished(run, out, stage, about),
            )  # fmt: skip
            if processes.is_main_process:
                delivery.write(run, out, {**about, "history": history, "wall_seconds": time.perf_counter() - started})
        processes.wait_for_everyone()
        if checkpoint is not None and processes.is_main_process:
            checkpoint.unlink(missing_ok=True)
    return run


def _about(run: PreparedRun, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of a run before it has trained."""
    return {
        "recipe": encode(run.job.recipe),
        "settings": encode(run.job.settings),
        "models": run.models.notes,
        "identity": dict(identity),
        "task": run.task.name,
        "data": dict(run.task.origin),
        **environment(),
    }


def _differing(out: Path, identity: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The first key in which what `out` was made by differs from `identity`, with its value there; None where none does.

    Hardware does not count.
    """
    report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
    theirs = report.get("identity", {})
    ours = json.loads(json.dumps(dict(identity)))
    return next(((key, theirs.get(key)) for key in ours if key not in HARDWARE and theirs.get(key) != ours[key]), None)


def _check_result(out: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to take what another run has made for the result of this one.

    Raises:
        SpecError: naming the key that differs.
    """
    differing = _differing(out, identity)
    if differing is not None:
        key, theirs = differing
        fix = "Choose another --out; or leave --resume out, to begin anew."
        raise SpecError(f"the result of this run ({key} {identity[key]})", given=f"{key} {theirs}", where=str(out), fix=fix)
