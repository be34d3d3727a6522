"""The three verbs: `compress` trains and delivers, `Result.save` keeps, `load` brings back."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.artifact.files import check_target, replaced_folder
from bitstill.artifact.format import REPORT
from bitstill.artifact.hub import push
from bitstill.artifact.reader import read
from bitstill.artifact.size import size_report
from bitstill.artifact.writer import Storage, write
from bitstill.data.task import Task, evaluate
from bitstill.data.text import TextOptions
from bitstill.decode import encode
from bitstill.deliver.architecture import architecture_of, can_rebuild
from bitstill.deliver.deliver import deliver, environment, measure
from bitstill.deliver.load import load
from bitstill.deliver.load_task import task_for
from bitstill.errors import ArtifactError, SpecError
from bitstill.model.contents import contents_of
from bitstill.model.lifecycle import PrepareReport, report, uncompressed
from bitstill.model.packed_layers import is_packed
from bitstill.recipes.catalogue import recipe_class, recipe_name
from bitstill.recipes.protocol import Recipe
from bitstill.run.roles import ModelLike, rehearse, resolve_models, stages_for
from bitstill.run.run_file import RunFile
from bitstill.train.checkpoint import checkpoint_beside
from bitstill.train.identity import identity_of
from bitstill.train.loop import train
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage


class _Scratch:
    """A temporary folder that vanishes with this object; unlike `TemporaryDirectory`, without a warning."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="bitstill-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class Result:
    """What `compress` delivers.

    Args:
        model: the delivered model, reloaded from disk.
        report: the contents of report.json.
        folder: where the artifact is; a temporary folder that vanishes with the result if no `out` was given.
        models: every model of the run by name, as training left it (latent weights and teachers).
    """

    model: nn.Module
    report: dict[str, Any]
    folder: Path
    models: dict[str, nn.Module]
    _temporary: _Scratch | None = field(default=None, repr=False)

    def save(self, folder: str | Path, *, push_to_hub: str | None = None) -> Path:
        """Copy the artifact to `folder`, which may hold an older one.

        Args:
            folder: where to.
            push_to_hub: "owner/name", to put it there as well.

        Raises:
            ArtifactError: if the place cannot be written or holds something else, or the hub refuses.
        """
        target = Path(folder)
        with replaced_folder(target) as beside:
            shutil.copytree(self.folder, beside, dirs_exist_ok=True)
        if push_to_hub is not None:
            push(target, push_to_hub)
        return target


def compress(
    recipe: Recipe | str,
    task: Task | str,
    models: Mapping[str, ModelLike],
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    storage: Storage | None = None,
    resume: bool = False,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    augmented: str | Path | None = None,
    each_stage: bool = False,
) -> Result:
    """Train a compressed model under a recipe, deliver it as an artifact, and read it back.

    Args:
        recipe: a recipe, or the name of one with its default settings.
        task: a task, or the name of one of bitstill's.
        models: by role. "student" is what is compressed; "teacher" guides it. A network is taken as it is and left unchanged; a
            name ("polino-teacher") is built anew, and a teacher built anew is trained first; a folder is an artifact.
        out: where to deliver; None keeps the artifact in a temporary folder until `Result.save`.
        settings: seed, precision, checkpoints and so on.
        storage: dtype of leftovers, entropy coding.
        resume: continue from the checkpoint beside `out`, if there is one; without it such a checkpoint is an error.
        data: a folder with local files for the task.
        text: columns, longest text and so on, for the task "text".
        augmented: a folder with variants of the task's training texts (`bitstill.augment`), which are trained on as well.
        each_stage: also deliver what every stage but the last leaves of the student, to `out`-<stage>.

    Returns:
        The reloaded model, its report and its folder.

    Raises:
        BitstillError: its subclasses say what was wrong; nothing at `out` is damaged.

    Example:
        >>> import bitstill
        >>> recipe = bitstill.recipes.QuantizedDistillation(bits=2, epochs=1, teacher_epochs=1)
        >>> models = {"teacher": "digits-teacher", "student": "digits-student"}
        >>> result = bitstill.compress(recipe, "digits", models, settings=bitstill.train.Settings(progress=False))
        >>> result.report["size"]["nominal_bits"]
        2.0
    """
    from accelerate import PartialState

    started = time.perf_counter()
    settings, storage = settings or Settings(), storage or Storage()
    _check_arguments(task, out, resume, data or augmented, each_stage)
    recipe = recipe_class(recipe)() if isinstance(recipe, str) else recipe
    temporary = _Scratch() if out is None else None
    target = temporary.path / "artifact" if temporary else _own_folder(str(out))
    check_target(target)
    task_name = task if isinstance(task, str) else task.name
    task = task_for(task, models, data, text, augmented=augmented) if isinstance(task, str) else task
    cast = resolve_models(recipe, models, settings.seed, task)
    networks = cast.networks
    stages = stages_for(recipe, cast, task)
    skeleton = uncompressed(rehearse(stages, networks, task)["student"])
    identity = identity_of(encode(recipe), stages, task, networks, settings)
    work = None if temporary else checkpoint_beside(target, resume)
    about = {
        "recipe": encode(recipe),
        "task": task.name,
        "settings": encode(settings),
        "storage": encode(storage),
        "models": cast.notes,
        **environment(),
    }
    run_file = resolved(recipe, task, models, settings, storage, data, text, augmented)
    text_of_run = replace(run_file, task=task_name).to_yaml()

    def deliver_to(folder: Path, run_report: Mapping[str, Any]) -> None:
        student = networks["student"]
        parameters = _parameters(report(student))
        deliver(folder, student, task, storage, {**about, **run_report, "parameters": parameters}, text_of_run, skeleton)

    on_the_way = [stage for stage in stages[:-1] if "student" in stage.train] if each_stage else []
    for stage in on_the_way:
        check_target(stage_folder(target, stage))

    def finished(stage: Stage) -> None:
        if stage in on_the_way:
            deliver_to(stage_folder(target, stage), {"stage": stage.name})

    history = train(stages, networks, task, settings, identity=identity, checkpoint_path=work, resume=resume, finished=finished)
    several = PartialState()
    if several.is_main_process:
        run_report: dict[str, Any] = {"history": history}
        if "teacher" in networks:
            run_report["teacher"] = _teacher_row(networks["teacher"], task)
        deliver_to(target, {**run_report, "wall_seconds": time.perf_counter() - started})
    several.wait_for_everyone()
    if work is not None and several.is_main_process:
        work.unlink(missing_ok=True)
    delivered = load(target, None if can_rebuild(architecture_of(skeleton)) else skeleton)
    return Result(delivered, json.loads((target / REPORT).read_text()), target, networks, temporary)


def stage_folder(out: Path, stage: Stage) -> Path:
    """Where the student that `stage` leaves is delivered when each stage is."""
    return out.with_name(f"{out.name}-{stage.name.replace(' ', '-')}")


def resolved(
    recipe: Recipe,
    task: Task,
    models: Mapping[str, ModelLike],
    settings: Settings,
    storage: Storage,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    augmented: str | Path | None = None,
) -> RunFile:
    """The run as a file that `bitstill compress` accepts; networks handed in as objects are named by their class."""
    names = {role: type(m).__name__ if isinstance(m, nn.Module) else str(m) for role, m in models.items()}
    return RunFile(
        recipe=recipe_name(recipe),
        task=task.name,
        teacher=names.get("teacher"),
        student=names.get("student"),
        data=None if data is None else str(data),
        text=text,
        augmented=None if augmented is None else str(augmented),
        options=encode(recipe),
        settings=settings,
        storage=storage,
    )


def _check_arguments(task: Task | str, out: str | Path | None, resume: bool, data: str | Path | None, each_stage: bool) -> None:
    if out is None and each_stage:
        fix = "Each stage's folder is named after it."
        raise SpecError("an out folder to deliver each stage", given="none", where="compress", fix=fix)
    if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "Pass a folder that all of them can read."
        raise SpecError("an out folder for several processes", given="none", where="compress", fix=fix)
    if out is None and resume:
        raise SpecError("an out folder to resume", given="none", where="compress", fix="Pass that of the run.")
    if data is not None and not isinstance(task, str):
        raise SpecError("data with a task's name", given="a Task", where="compress", fix="A Task has its data: leave data out.")


def _own_folder(out: str) -> Path:
    target = Path(out).resolve()
    if target == Path.cwd():
        raise ArtifactError(
            "a folder of its own", given="the current one", where=out, fix="Name a new folder: the whole of it is replaced."
        )
    return target


def _teacher_row(teacher: nn.Module, task: Task) -> dict[str, Any]:
    if any(is_packed(module) for module in teacher.modules()):  # it came from an artifact: it is the delivered form already
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), contents_of(copy.deepcopy(teacher).cpu()), {}, Storage())
            file_bytes = size_report(read(folder)).file_bytes
        return {"metric": task.objective.decides, "test": evaluate(teacher, task, task.test), "file_bytes": file_bytes}
    row = measure(teacher, task, copy.deepcopy(teacher))
    return {"metric": task.objective.decides, "test": row.metric, "file_bytes": row.size.file_bytes}


def _parameters(prepared: PrepareReport) -> list[dict[str, Any]]:
    return [encode(row) for row in prepared.rows]
