"""Networks of a run by role: given as objects, by name, as folders or from the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.artifact.format import CONFIG, TOKENIZER_FILES
from bitstill.artifact.reader import read
from bitstill.data.imported import import_network
from bitstill.data.networks import MODELS, build
from bitstill.data.task import Task
from bitstill.deliver.architecture import blank_network
from bitstill.errors import SpecError, need_package, suggest
from bitstill.import_path import is_import_path
from bitstill.model.copies import copy_model
from bitstill.model.modes import remember_eval_mode
from bitstill.model.packed_layers import is_packed
from bitstill.model.restore import load_into
from bitstill.recipes.recipe import Recipe

ModelLike = nn.Module | str | Path
"""A network; the name of a built-in one, to be initialised; the folder of an artifact or of a Hugging Face model; or the name
of such a model on the hub."""
ROLES = ("student", "teacher")


@dataclass(frozen=True)
class ResolvedModels:
    """Networks of a run.

    Args:
        networks: networks by role.
        untrained: roles whose network, or classifier, has random weights: built by name, or a pretrained body with a new
            classifier.
        notes: notes for the report on how they were loaded.
    """

    networks: dict[str, nn.Module]
    untrained: frozenset[str]
    notes: dict[str, Any]


def resolve_models(recipe: Recipe, models: Mapping[str, ModelLike], seed: int, task: Task | None) -> ResolvedModels:
    """Resolve the networks for the roles that `recipe` needs; network objects are copied.

    Args:
        recipe: recipe whose roles are filled.
        models: models by role.
        seed: seed of new weights.
        task: task that defines the outputs; None loads encoders without a head.

    Raises:
        SpecError: a role is missing or unknown.
        DataError: a pretrained model does not fit the task.
    """
    for name in models:
        if name not in ROLES:
            raise SpecError("a known role", given=repr(name), where="models", fix=suggest(name, ROLES))
    roles = needed_roles(recipe, models)
    for name in roles:
        if name not in models:
            raise SpecError(
                f"a model for the role {name!r}",
                given=f"only {sorted(models)}",
                where=type(recipe).__name__,
                fix=f"Pass a network, one of {', '.join(sorted(MODELS))}, or a folder: an artifact's or Hugging Face's.",
            )
    resolved = {name: _resolve(models[name], seed, name, task) for name in roles}
    return ResolvedModels(
        {name: each.network for name, each in resolved.items()},
        frozenset(name for name, each in resolved.items() if each.untrained),
        {name: each.note for name, each in resolved.items() if each.note},
    )


def needed_roles(recipe: Recipe, models: Mapping[str, ModelLike]) -> tuple[str, ...]:
    """Roles that the caller must fill; a recipe that builds its student also accepts a given one."""
    student = ("student",) if "student" in models or not recipe.makes_student else ()
    return (*student, "teacher") if recipe.needs_teacher else student


def by_role(recipe: Recipe, model: ModelLike) -> dict[str, ModelLike]:
    """One model in every role that `recipe` needs filled; a student that it makes of the teacher is left to it."""
    return dict.fromkeys(needed_roles(recipe, {}), model)


@dataclass(frozen=True)
class _Resolved:
    """A network, whether it or its classifier is untrained, and a note for the report."""

    network: nn.Module
    untrained: bool = False
    note: Mapping[str, Any] | None = None


def _resolve(model: ModelLike, seed: int, role: str, task: Task | None) -> _Resolved:
    if isinstance(model, nn.Module):
        return _Resolved(remember_eval_mode(copy_model(model, role)).cpu())
    if is_import_path(model):
        network, untrained = import_network(str(model), seed, role)
        return _Resolved(remember_eval_mode(network), untrained)
    if task is None:
        return _encoder(str(model), seed, role)
    if isinstance(model, str) and model in MODELS:
        return _Resolved(build(model, seed, role, task.objective.width), untrained=True)
    if is_artifact(model):
        return _Resolved(_from_artifact(model, role))
    if not (Path(model).is_dir() or "input_ids" in task.train.inputs or str(model).count("/") == 1):
        expected = "a known model, or the folder of an artifact or of a Hugging Face model"
        raise SpecError(expected, given=repr(str(model)), where=role, fix=suggest(str(model), MODELS))
    need_package("transformers", extra="all", purpose=f"loading {str(model)!r}")
    from bitstill.hf.pretrained import load_pretrained

    loaded = load_pretrained(str(model), task, role, seed)
    note = {"source": str(model), "new": list(loaded.new), "unused": list(loaded.unused)}
    return _Resolved(loaded.model, bool(loaded.new), note)


def tokenizer_source(model: ModelLike) -> str | None:
    """The folder or hub name where the model's own tokenizer is; None where there is none that is known."""
    if isinstance(model, nn.Module):
        folder = Path(str(getattr(getattr(model, "config", None), "name_or_path", "")))
        return str(folder) if _has_tokenizer(folder) else None
    if is_import_path(model) or (isinstance(model, str) and model in MODELS):
        return None
    folder = Path(model)
    return str(model) if _has_tokenizer(folder) or not folder.exists() else None


def _has_tokenizer(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in TOKENIZER_FILES if name != "preprocessor_config.json")


def _encoder(source: str, seed: int, role: str) -> _Resolved:
    need_package("transformers", extra="all", purpose=f"loading {source!r}")
    from bitstill.hf.pretrained import load_encoder

    loaded = load_encoder(source, role, seed)
    return _Resolved(loaded.model, bool(loaded.new), {"source": source, "new": bool(loaded.new)})


def is_artifact(source: ModelLike) -> bool:
    """Whether `source` is the folder of an artifact; an unreadable one counts, so that its error is shown."""
    if isinstance(source, nn.Module) or not Path(source).is_dir():
        return False
    try:
        config = json.loads((Path(source) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return not isinstance(config, dict) or "quantization_config" in config or "model_type" not in config


def _from_artifact(folder: str | Path, role: str) -> nn.Module:
    archive = read(folder)
    loaded = load_into(blank_network(archive), archive)
    if role == "student" and any(is_packed(module) for module in loaded.modules()):
        raise SpecError(
            "a float student",
            given=f"an artifact that is already compressed, {str(folder)!r}",
            where=role,
            fix="Start from the float network, or from an artifact delivered with bits=None (--bits none).",
        )
    return loaded.requires_grad_(role == "student")
