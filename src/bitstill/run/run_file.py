"""A run as a YAML file: the same frozen dataclasses that Python users write, decoded strictly.

    recipe: quantized-distillation
    task: digits
    teacher: digits-teacher
    student: digits-student
    options: {bits: 2, epochs: 20}
    settings: {seed: 1}
    out: student-2bit

Flags of `bitstill compress` override the file; `--set` reaches every option. The resolved file is delivered with the artifact
as recipe.yaml.
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
    """Everything `bitstill compress` needs to know.

    Args:
        recipe: name of a recipe.
        task: name of a task.
        model: what is to be compressed, where no student is named; and the teacher, where none is named.
        teacher, student: networks by name, or folders of artifacts.
        data: a folder with local files for the task.
        text: how files of your own are read, for the task "text".
        class_weights: of the loss on labels: one number per class, or "balanced".
        augmented: a folder with variants of the training texts, from `bitstill augment`.
        options: settings of the recipe.
        settings: how the run is carried out.
        storage: how the artifact is stored.
        out: where it is delivered.
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
        """The recipe with its options.

        Raises:
            SpecError: unknown recipe or option.
        """
        return decode(recipe_class(self.recipe), self.options, "options", imports=True)

    def models(self, recipe: Recipe) -> dict[str, str]:
        """Networks by role, as `compress` takes them."""
        roles = {"student": self.student or self.model, "teacher": self.teacher or self.model}
        if recipe.makes_student:
            roles["student"] = self.student
        needed = ("student", "teacher") if recipe.needs_teacher else ("student",)
        return {role: name for role in needed if (name := roles[role]) is not None}

    def to_yaml(self) -> str:
        """The file's text; what is empty is left out."""
        content = {key: value for key, value in encode(self).items() if key != "kind" and value is not None}
        return yaml.safe_dump(content, sort_keys=False)


def run_file_of(job: Job) -> RunFile:
    """The job as a run file; networks handed in as objects are named by their class."""
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
    """Read a run file and lay overrides over it.

    Args:
        path: the YAML file, or None to start from nothing.
        overrides: dotted keys ("options.bits", "settings.seed") and values; None leaves the file's value.
        assignments: as after `--set`: see `run.assignments`.

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
    # A duration in steps beats one in epochs, so a flag in epochs drops the file's steps.
    if overrides.get("options.epochs") is not None and isinstance(content.get("options"), dict):
        content["options"].pop("steps", None)
    for assignment in assignments:
        assign(content, assignment, defaults)
    for key, hint in (("recipe", "--recipe, see `bitstill recipes`"), ("task", "--task, for example digits")):
        if key not in content:
            raise SpecError(f"a {key}", given="none", where="compress", fix=f"Add {hint}, or name it in the run file.")
    return decode(RunFile, content, "run")


def _defaults(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Plain values of what a run file need not say, by section; a key that the recipe has as an option is the option."""
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
