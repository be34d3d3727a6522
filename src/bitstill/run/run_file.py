"""A run as a YAML file: the same frozen dataclasses that Python users write, decoded strictly.

    recipe: quantized-distillation
    task: digits
    teacher: digits-teacher
    student: digits-student
    options: {bits: 2, epochs: 20}
    settings: {seed: 1}
    out: student-2bit

Flags of `bitstill compress` override the file; `--set` reaches every option. The artifact contains the resolved file as
recipe.yaml.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from bitstill.artifact.writer import Storage
from bitstill.constraints import NonNegative, check_fields
from bitstill.data.text import TextOptions
from bitstill.decode import decode, encode
from bitstill.errors import SpecError
from bitstill.recipes.by_name import recipe_class, recipe_name
from bitstill.recipes.recipe import Recipe
from bitstill.run.assignments import OPTIONS, assign, field_defaults, parse_yaml, put
from bitstill.run.job import Job
from bitstill.train.settings import Settings


@dataclass(frozen=True)
class RunFile:
    """All settings of `bitstill compress`.

    Args:
        recipe: name of a recipe.
        task: name of a task.
        model: the model to compress, if no student is named, and the teacher, if none is named.
        teacher, student: networks by name, or folders of artifacts.
        data: folder with local files for the task.
        text: format of your own files, for the task "text".
        class_weights: weights of the loss on labels: one number per class, or "balanced".
        augmented: folder with variants of the training texts, from `bitstill augment`.
        options: settings of the recipe.
        settings: seed, precision, device and checkpoints.
        storage: storage options of the artifact.
        out: destination folder.
    """

    recipe: str
    task: str
    model: str | None = None
    teacher: str | None = None
    student: str | None = None
    data: str | None = None
    text: TextOptions | None = None
    class_weights: Literal["balanced"] | tuple[NonNegative, ...] | None = None
    augmented: str | None = None
    options: Any = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    storage: Storage = field(default_factory=Storage)
    out: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def build_recipe(self) -> Recipe:
        """Build the recipe with its options.

        Raises:
            SpecError: unknown recipe or option.
        """
        return decode(recipe_class(self.recipe), self.options, "options", imports=True)

    def models(self, recipe: Recipe) -> dict[str, str]:
        """Networks by role, for `compress`."""
        roles = {"student": self.student or self.model, "teacher": self.teacher or self.model}
        if recipe.makes_student:
            roles["student"] = self.student
        needed = ("student", "teacher") if recipe.needs_teacher else ("student",)
        return {role: name for role in needed if (name := roles[role]) is not None}

    def to_yaml(self) -> str:
        """Text of the file, without empty fields."""
        content = {key: value for key, value in encode(self).items() if key != "kind" and value is not None}
        return yaml.safe_dump(content, sort_keys=False)


def run_file_of(job: Job) -> RunFile:
    """The job as a run file; network objects are named by their class."""
    names = {role: type(m).__name__ if isinstance(m, nn.Module) else str(m) for role, m in job.models.items()}
    assert job.task is not None
    return RunFile(
        recipe=recipe_name(job.recipe),
        task=job.task if isinstance(job.task, str) else job.task.name,
        teacher=names.get("teacher"),
        student=names.get("student"),
        data=None if job.data is None else str(job.data),
        text=job.text,
        class_weights=job.class_weights,
        augmented=None if job.augmented is None else str(job.augmented),
        options=encode(job.recipe),
        settings=job.settings,
        storage=job.storage,
    )


def read_run(path: Path | None, overrides: Mapping[str, Any], assignments: Sequence[str] = ()) -> RunFile:
    """Read a run file and apply overrides.

    Args:
        path: the YAML file, or None for an empty one.
        overrides: dotted keys ("options.bits", "settings.seed") and values; None keeps the file's value.
        assignments: arguments of `--set`, see `bitstill.run.assignments`.

    Raises:
        SpecError: the file is missing or not YAML, or a key or value is wrong.
    """
    content = {} if path is None else _read_yaml(path)
    if overrides.get("recipe") is not None:
        content["recipe"] = overrides["recipe"]
    defaults = _defaults(content)
    for key, value in overrides.items():
        if value is not None:
            put(content, key, value, defaults)
    # A duration in steps takes precedence over one in epochs, so a flag in epochs removes the file's steps.
    if overrides.get("options.epochs") is not None and isinstance(content.get("options"), dict):
        content["options"].pop("steps", None)
    for assignment in assignments:
        assign(content, assignment, defaults)
    for key, hint in (("recipe", "--recipe, see `bitstill recipes`"), ("task", "--task, for example digits")):
        if key not in content:
            raise SpecError(f"a {key}", given="none", where="compress", fix=f"Add {hint}, or name it in the run file.")
    return decode(RunFile, content, "run")


def _defaults(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Plain default values by section; a key that is also an option of the recipe denotes the option."""
    name = content.get("recipe")
    recipe: Any = recipe_class(name) if isinstance(name, str) else None
    options = set() if recipe is None else {option.name for option in fields(recipe)}
    return {
        **{each.name: {} for each in fields(RunFile) if each.name not in options},
        OPTIONS: {} if recipe is None else field_defaults(recipe),
        "settings": field_defaults(Settings), "storage": field_defaults(Storage), "text": field_defaults(TextOptions),
    }  # fmt: skip


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("a readable run file", given=str(error), where=str(path), fix="Check the path.") from None
    if not isinstance(content, dict):
        raise SpecError("a YAML mapping", given=type(content).__name__, where=str(path), fix="See `bitstill compress --help`.")
    return copy.deepcopy(content)
