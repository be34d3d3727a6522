"""Which network plays which role in a run, and whether it can."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from bitstill.artifact.reader import read
from bitstill.artifact.restore import load_into
from bitstill.distill.taps import tap
from bitstill.errors import SpecError, suggest
from bitstill.nn.packed import is_packed
from bitstill.nn.transform import check_finite
from bitstill.recipes import Recipe
from bitstill.tasks.models import MODELS, build, from_architecture
from bitstill.train.stage import Stage
from bitstill.train.step import taps
from bitstill.train.task import Task

ModelLike = nn.Module | str | Path
"""A network; the name of one of bitstill's, freshly initialised; or the folder of an artifact."""


def resolve_models(recipe: Recipe, models: Mapping[str, ModelLike], seed: int) -> dict[str, nn.Module]:
    """Networks for the roles that `recipe` needs; those handed in are copied.

    Raises:
        SpecError: a role is missing or unknown.
    """
    roles = ("student", "teacher")
    for name in models:
        if name not in roles:
            raise SpecError("a known role", given=repr(name), where="models", fix=suggest(name, roles))
    wanted = ("student", "teacher") if recipe.needs_teacher else ("student",)
    for name in wanted:
        if name not in models:
            raise SpecError(
                f"a model for the role {name!r}",
                given=f"only {sorted(models)}",
                where=type(recipe).__name__,
                fix=f"Pass a network, one of {', '.join(sorted(MODELS))}, or an artifact's folder.",
            )
    return {name: _network(models[name], seed, name) for name in wanted}


def trains_teacher(recipe: Recipe, models: Mapping[str, ModelLike]) -> bool:
    """Whether the teacher is built anew, by name, and therefore has to be trained first."""
    return recipe.needs_teacher and is_fresh(models["teacher"])


def is_fresh(model: ModelLike) -> bool:
    """Whether `model` is a name, so that a network with random weights is built."""
    return isinstance(model, str) and model in MODELS


def check_student(stages: Sequence[Stage], models: Mapping[str, ModelLike]) -> None:
    """Refuse to quantize random weights: a student built by name must be trained by some stage.

    Raises:
        SpecError: no stage moves its weights.
    """
    moved = any(stage.terms and "student" in stage.train and stage.parameters != "learned" for stage in stages)
    if is_fresh(models["student"]) and not moved:
        raise SpecError(
            "a trained student",
            given=f"{models['student']!r}, which is built with random weights",
            where="models",
            fix="Pass a trained network or an artifact delivered with bits=None, or let the recipe train it first.",
        )


def rehearse(stages: Sequence[Stage], networks: Mapping[str, nn.Module], task: Task) -> dict[str, nn.Module]:
    """Begin every stage on copies of the models, so that what cannot work is refused before anything has trained.

    Returns:
        The copies, with the structure they will have at the end.

    Raises:
        BitstillError: a pattern or a layer pair names nothing, a model is unknown, layers cannot be compressed.
    """
    models = copy.deepcopy(dict(networks))
    for stage in stages:
        for action in stage.begin:
            action.replay(models, task)
        stage.check_models(models)
        for name in {term.student for term in stage.terms} | {term.teacher for term in stage.terms if term.teacher}:
            with tap(models[name], taps(stage, name)):
                pass
    return models


def check_model(name: str, network: nn.Module, task: Task) -> None:
    """Refuse weights that are not finite, and outputs that do not fit the task's classes."""
    stored = network.state_dict()
    for tensor_name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor_name in stored and tensor.is_floating_point():  # a causal mask, not stored, may well be infinite
            check_finite(tensor.detach(), f"{name}: {tensor_name}")
    task.check_model(network, name)


def _network(model: ModelLike, seed: int, role: str) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).cpu()
    if isinstance(model, str) and model in MODELS:
        return build(model, seed, role)
    if not Path(model).is_dir():
        raise SpecError(
            "a known model or an artifact's folder", given=repr(str(model)), where=role, fix=suggest(str(model), MODELS)
        )
    archive = read(model)
    loaded = load_into(from_architecture(archive.config), archive)
    if role == "student" and any(is_packed(module) for module in loaded.modules()):
        raise SpecError(
            "a float student",
            given=f"an artifact that is compressed already, {str(model)!r}",
            where=role,
            fix="Start from the float network, or from an artifact delivered with bits=None (--bits none).",
        )
    return loaded.requires_grad_(role == "student")
