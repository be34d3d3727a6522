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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from bitstill.artifact.writer import Storage
from bitstill.data.text import TextOptions
from bitstill.decode import decode, encode
from bitstill.errors import SpecError
from bitstill.recipes.catalogue import recipe_class, recipe_name
from bitstill.recipes.protocol import Recipe
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
    augmented: str | None = None
    options: Any = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    storage: Storage = field(default_factory=Storage)
    out: str | None = None

    def build_recipe(self) -> Recipe:
        """The recipe with its options.

        Raises:
            SpecError: unknown recipe or option.
        """
        return decode(recipe_class(self.recipe), self.options, f"options of {self.recipe}", imports=True)

    def models(self, recipe: Recipe) -> dict[str, str]:
        """Networks by role, as `compress` takes them."""
        roles = {"student": self.student or self.model, "teacher": self.teacher or self.model}
        if recipe.makes_student:
            roles["student"] = self.student
        wanted = ("student", "teacher") if recipe.needs_teacher else ("student",)
        return {role: name for role in wanted if (name := roles[role]) is not None}

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
        augmented=None if job.augmented is None else str(job.augmented),
        options=encode(job.recipe),
        settings=job.settings,
        storage=job.storage,
    )


_SECTIONS = ("settings", "storage", "options", "text")


def read_run(path: Path | None, overrides: Mapping[str, Any], assignments: Sequence[str] = ()) -> RunFile:
    """Read a run file and lay overrides over it.

    Args:
        path: the YAML file, or None to start from nothing.
        overrides: dotted keys ("options.bits", "settings.seed") and values; None leaves the file's value.
        assignments: "KEY=VALUE" with a YAML value; a key without a prefix is an option of the recipe.

    Raises:
        SpecError: the file is missing or not YAML, or a key or value is wrong.
    """
    content = {} if path is None else _read_yaml(path)
    for key, value in overrides.items():
        if value is not None:
            _put(content, key, value)
    # A duration in steps beats one in epochs, so a flag in epochs drops the file's steps.
    if overrides.get("options.epochs") is not None and isinstance(content.get("options"), dict):
        content["options"].pop("steps", None)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            raise SpecError("KEY=VALUE", given=repr(assignment), where="--set", fix="For example: --set kd_weight=0.9.")
        prefixed = key if key.split(".")[0] in _SECTIONS else f"options.{key}"
        _put(content, prefixed, _parse(text, f"--set {key}"))
    for key, wanted in (("recipe", "--recipe, see `bitstill recipes`"), ("task", "--task, for example digits")):
        if key not in content:
            raise SpecError(f"a {key}", given="none", where="compress", fix=f"Add {wanted}, or name it in the run file.")
    return decode(RunFile, content, "run")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("a readable run file", given=str(error), where=str(path), fix="Check the path.") from None
    if not isinstance(content, dict):
        raise SpecError("a YAML mapping", given=type(content).__name__, where=str(path), fix="See `bitstill compress --help`.")
    return copy.deepcopy(content)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise SpecError("valid YAML", given=" ".join(str(error).split()), where=where, fix="Correct the file.") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader, which also reads 1e-4 as a number: YAML 1.1 wants 1.0e-4, and nobody writes that."""


_SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+.0123456789"))


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    place = content
    for parent in parents:
        child = place.setdefault(parent, {})
        if not isinstance(child, dict):
            raise SpecError(
                "a setting with fields",
                given=repr(child),
                where=key,
                fix=f"Give it whole, for example --set {parent}='{{...}}'.",
            )
        place = child
    place[leaf] = value
