"""The one driver: every run, from its models and data to its report.

Compression, fine-tuning and general distillation differ in their recipe, which defines the training, and in their delivery,
which defines the output. Everything else happens here, in this order: load the task and the models, plan the stages, prepare
their data, rehearse them on copies, train, deliver, report. An unfinished run resumes from its checkpoint; a finished one is
recognised by its identity.
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
from bitstill.data.task import Task, TextPreprocessor, with_class_weights
from bitstill.decode import encode
from bitstill.deliver.deliver import environment
from bitstill.deliver.load_task import task_for
from bitstill.deliver.soundness import teacher_warnings, warn
from bitstill.errors import SpecError
from bitstill.recipes.recipe import RunContext
from bitstill.run.checks import check_model, check_tokenizers, check_trained
from bitstill.run.job import Job
from bitstill.run.models import ResolvedModels, resolve_models
from bitstill.run.rehearsal import rehearse
from bitstill.run.stage_data import stage_data
from bitstill.train.checkpoint import checkpoint_beside, checkpoint_of
from bitstill.train.identity import HARDWARE, identity_of
from bitstill.train.loop import train
from bitstill.train.run import Data
from bitstill.train.settings import accelerator, check_trackers
from bitstill.train.stage import Stage


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first step.

    Args:
        job: recipe, models, task and settings.
        models: networks by role; training changes them and adds to them.
        stages: stages in order.
        data: training data of the stages.
        rehearsed: copies of the networks with their final structure.
    """

    job: Job
    models: ResolvedModels
    stages: tuple[Stage, ...]
    data: Data
    rehearsed: dict[str, nn.Module]

    @property
    def task(self) -> Task:
        """Data on which the delivered model is evaluated: the task, or that of the last stage."""
        return self.data["task"] if "task" in self.data else self.data[self.stages[-1].data]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Networks by name."""
        return self.models.networks

    def identity(self) -> dict[str, Any]:
        """Identity of the run, see `bitstill.train.identity`."""
        return identity_of(encode(self.job.recipe), self.stages, self.data, self.networks, self.job.settings)


class Delivery(Protocol):
    """Output of a run."""

    def check_place(self, out: Path, stopped: bool) -> None:
        """Check, before anything is loaded, that `out` can be written.

        Args:
            out: destination.
            stopped: an interrupted run is resumed, which has passed this check before.

        Raises:
            BitstillError: it cannot be written.
        """

    def check(self, run: PreparedRun, out: Path) -> None:
        """Check, before training, that the model can be delivered in this form.

        Raises:
            BitstillError: it cannot.
        """

    def stage_finished(self, run: PreparedRun, out: Path, stage: Stage, report: Mapping[str, Any]) -> None:
        """Deliver the result of a stage, if asked to; called again if the run is interrupted before its next checkpoint."""

    def write(self, run: PreparedRun, out: Path, report: Mapping[str, Any]) -> None:
        """Deliver to `out` atomically, with `report` and the measurements of the reloaded model."""


def prepare_run(job: Job, out: Path, *, untrained: bool = False) -> PreparedRun:
    """Load everything, plan the stages and rehearse them, so that invalid input fails before training.

    Args:
        job: recipe, models, task and settings.
        out: destination; a tokenized corpus is stored next to it.
        untrained: allow a student with random weights that no stage trains, where only its size matters.

    Raises:
        BitstillError: invalid input, see its subclasses.
    """
    task = job.task
    if isinstance(task, str):
        task = task_for(task, job.models, job.data, job.text, augmented=job.augmented)
    if task is not None and job.class_weights is not None:
        task = with_class_weights(task, job.class_weights)
    if task is not None and isinstance(task.preprocessor, TextPreprocessor):
        check_tokenizers(task.preprocessor.tokenizer, task.preprocessor.texts, job.models)
    models = resolve_models(job.recipe, job.models, job.settings.seed, task)
    if task is not None:
        for name, network in models.networks.items():
            check_model(name, network, task)
    objective = MeanStates() if task is None else task.objective
    stages = job.recipe.stages(RunContext(objective, models.networks, models.untrained))
    if not untrained:
        check_trained(stages, models)
    data = stage_data(job, stages, task, models, out)
    return PreparedRun(job, models, stages, data, rehearse(stages, models.networks, data, job.settings.accumulate))


def execute(job: Job, delivery: Delivery, out: Path, *, resume: bool = False, keep: bool = True) -> PreparedRun:
    """Execute a run.

    Args:
        job: recipe, models, task and settings.
        delivery: form of the output.
        out: destination.
        resume: continue from the checkpoint next to `out` if it exists; a finished result of the same run is left unchanged.
        keep: write checkpoints.

    Returns:
        The run with its trained networks; `out` holds its report.

    Raises:
        BitstillError: invalid input, see its subclasses; nothing at `out` is damaged.
    """
    from accelerate import PartialState

    finished = resume and (out / REPORT).is_file()
    stopped = resume and checkpoint_of(out).exists()
    if not finished:
        delivery.check_place(out, stopped)
    check_trackers(job.settings)
    accelerator(replace(job.settings, trackers=()))  # fixes the device before anything else asks for it
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
            doubts = _teacher_doubts(run)
            about = {**_about(run, identity), "warnings": doubts}
            if processes.is_main_process or job.strict:
                warn(doubts, job.strict, "teacher")
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


def _teacher_doubts(run: PreparedRun) -> list[str]:
    """Warnings about a teacher that no stage trains."""
    taught = {name for stage in run.stages for name in stage.train}
    if run.job.task is None or "teacher" in taught or "teacher" not in run.networks:
        return []
    return teacher_warnings(run.networks["teacher"], run.task)


def _about(run: PreparedRun, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a report that is known before training."""
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
    """First key, and its value in `out`, in which the run that wrote `out` differs from `identity`; None if equal.

    Hardware is not compared.
    """
    report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
    recorded = report.get("identity", {})
    current = json.loads(json.dumps(dict(identity)))
    return next(
        ((key, recorded.get(key)) for key in current if key not in HARDWARE and recorded.get(key) != current[key]), None
    )


def _check_result(out: Path, identity: Mapping[str, Any]) -> None:
    """Check that the result at `out` is of this run.

    Raises:
        SpecError: it is of another run; names the key that differs.
    """
    differing = _differing(out, identity)
    if differing is not None:
        key, recorded = differing
        fix = "Choose another --out, or omit --resume to start again."
        raise SpecError(f"the result of this run ({key} {identity[key]})", given=f"{key} {recorded}", where=str(out), fix=fix)
