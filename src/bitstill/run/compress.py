"""`compress`: train a compressed model with a recipe, and deliver it as an artifact."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bitstill.artifact.files import replaced_folder
from bitstill.artifact.format import REPORT
from bitstill.artifact.hub import push
from bitstill.artifact.writer import Storage
from bitstill.data.task import Task
from bitstill.data.text import TextOptions
from bitstill.deliver.architecture import architecture_of, can_rebuild
from bitstill.deliver.load import load
from bitstill.errors import ArtifactError, SpecError
from bitstill.model.lifecycle import uncompressed
from bitstill.recipes.by_name import recipe_class
from bitstill.recipes.recipe import Recipe
from bitstill.run.deliveries import ArtifactDelivery
from bitstill.run.driver import execute
from bitstill.run.job import Job
from bitstill.run.models import ModelLike, by_role
from bitstill.run.run_file import run_file_of
from bitstill.train.settings import Settings


@dataclass(frozen=True)
class Result:
    """Result of `compress`.

    Args:
        model: the delivered model, reloaded from disk.
        report: contents of report.json.
        folder: folder of the artifact; without `out`, a temporary folder that is deleted with the result.
        models: all models of the run by name, as trained (with latent weights; teachers too).
    """

    model: nn.Module
    report: dict[str, Any]
    folder: Path
    models: dict[str, nn.Module]
    _temporary: _Scratch | None = field(default=None, repr=False)

    def save(self, folder: str | Path, *, push_to_hub: str | None = None) -> Path:
        """Copy the artifact to `folder`, replacing an older one.

        Args:
            folder: destination.
            push_to_hub: "owner/name" of a repository on the hub to upload it to as well.

        Raises:
            ArtifactError: the folder cannot be written or holds something else, or the hub refuses.
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
    models: Mapping[str, ModelLike] | ModelLike,
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    storage: Storage | None = None,
    resume: bool = False,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    augmented: str | Path | None = None,
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None,
    each_stage: bool = False,
    force: bool = False,
    strict: bool = False,
) -> Result:
    """Train a compressed model with a recipe, deliver it as an artifact, and reload it.

    Args:
        recipe: a recipe, or the name of one with its default settings.
        task: a task, or the name of one of bitstill's.
        models: models by role. "student" is compressed; "teacher" guides it. A single model fills all roles that the recipe
            needs. A network is copied, never changed; a name ("polino-teacher") is initialized, and a teacher so initialized
            is trained first; a folder is an artifact, or a model saved by transformers.
        out: destination folder; None keeps the artifact in a temporary folder until `Result.save`.
        settings: seed, precision, checkpoints and so on.
        storage: dtype of leftovers, entropy coding.
        resume: continue from the checkpoint next to `out` if it exists; if False, an existing checkpoint is an error.
        data: folder with local files for the task.
        text: columns, maximal length and so on, for the task "text".
        augmented: folder with variants of the task's training texts (`bitstill.augment`) to train on as well.
        class_weights: weights of the loss on labels, one per class; "balanced" gives rare classes as much as frequent ones.
        each_stage: also deliver the student after every stage but the last, to `out`-<stage>.
        force: replace an existing artifact at `out`.
        strict: raise an error instead of a warning where the teacher or the delivered model is worth little.

    Returns:
        The reloaded model, its report and its folder.

    Raises:
        BitstillError: invalid input, see its subclasses; nothing at `out` is damaged.

    Example:
        >>> import bitstill
        >>> recipe = bitstill.recipes.QuantizedDistillation(bits=2, epochs=1, teacher_epochs=1)
        >>> models = {"teacher": "digits-teacher", "student": "digits-student"}
        >>> result = bitstill.compress(recipe, "digits", models, settings=bitstill.train.Settings(progress=False))
        >>> result.report["size"]["nominal_bits"]
        2.0
    """
    _check_arguments(task, out, resume, data or augmented, each_stage)
    chosen = recipe_class(recipe)() if isinstance(recipe, str) else recipe
    roles = models if isinstance(models, Mapping) else by_role(chosen, models)
    settings, storage = settings or Settings(), storage or Storage()
    job = Job(chosen, roles, task, settings, storage, data, text, augmented, class_weights=class_weights, strict=strict)
    temporary = _Scratch() if out is None else None
    target = temporary.path / "artifact" if temporary else _own_folder(str(out))
    delivery = ArtifactDelivery(run_file_of(job).to_yaml(), each_stage, force)
    run = execute(job, delivery, target, resume=resume, keep=temporary is None)
    skeleton = uncompressed(run.rehearsed["student"])
    delivered = load(target, None if can_rebuild(architecture_of(skeleton)) else skeleton)
    report = json.loads((target / REPORT).read_text(encoding="utf-8"))
    return Result(delivered, report, target, run.networks, temporary)


class _Scratch:
    """A temporary folder deleted with this object; unlike `TemporaryDirectory`, without a warning."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="bitstill-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _check_arguments(task: Task | str, out: str | Path | None, resume: bool, data: str | Path | None, each_stage: bool) -> None:
    if out is None and each_stage:
        fix = "Each stage's folder is named after it."
        raise SpecError("an out folder to deliver each stage", given="none", where="compress", fix=fix)
    if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "Pass a folder that all processes can read."
        raise SpecError("an out folder for several processes", given="none", where="compress", fix=fix)
    if out is None and resume:
        raise SpecError(
            "an out folder to resume", given="none", where="compress", fix="Pass the folder of the interrupted run."
        )
    if data is not None and not isinstance(task, str):
        raise SpecError("data with a task's name", given="a Task", where="compress", fix="A Task has its data: leave data out.")


def _own_folder(out: str) -> Path:
    target = Path(out).resolve()
    if target == Path.cwd():
        raise ArtifactError(
            "a folder for the artifact alone",
            given="the current one",
            where=out,
            fix="Name a new folder: it is replaced entirely.",
        )
    return target
