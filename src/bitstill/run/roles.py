"""Which network plays which role in a run, and whether it can."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitstill.artifact.format import CONFIG
from bitstill.artifact.reader import read
from bitstill.data.imported import import_network
from bitstill.data.networks import MODELS, build
from bitstill.data.task import Task
from bitstill.deliver.architecture import from_architecture
from bitstill.errors import DataError, SpecError, need_package, suggest
from bitstill.import_path import is_import_path
from bitstill.model.packed_layers import is_packed
from bitstill.model.restore import load_into
from bitstill.model.select import word_embeddings
from bitstill.model.state import stored_tensors
from bitstill.model.weight_transform import check_finite
from bitstill.recipes import Recipe
from bitstill.recipes.protocol import RunContext
from bitstill.train.stage import Stage, replay
from bitstill.train.step import TrainingStep, run, taps

ModelLike = nn.Module | str | Path
"""A network; the name of one of bitstill's, freshly initialised; the folder of an artifact or of a Hugging Face model; or the
name of such a model on the hub."""
ROLES = ("student", "teacher")


@dataclass(frozen=True)
class Cast:
    """Who plays which role.

    Args:
        networks: by role.
        untrained: roles whose network still has random weights where it decides: one built by name, or a pretrained body under
            a new classifier.
        notes: what a reader of the report should know of how they were loaded.
    """

    networks: dict[str, nn.Module]
    untrained: frozenset[str]
    notes: dict[str, Any]


def resolve_models(recipe: Recipe, models: Mapping[str, ModelLike], seed: int, task: Task) -> Cast:
    """Networks for the roles that `recipe` needs; those handed in are copied.

    Raises:
        SpecError: a role is missing or unknown.
        DataError: a pretrained model does not fit the task.
    """
    for name in models:
        if name not in ROLES:
            raise SpecError("a known role", given=repr(name), where="models", fix=suggest(name, ROLES))
    wanted = needed_roles(recipe, models)
    for name in wanted:
        if name not in models:
            raise SpecError(
                f"a model for the role {name!r}",
                given=f"only {sorted(models)}",
                where=type(recipe).__name__,
                fix=f"Pass a network, one of {', '.join(sorted(MODELS))}, or a folder: an artifact's or Hugging Face's.",
            )
    found = {name: _network(models[name], seed, name, task) for name in wanted}
    return Cast(
        {name: network for name, (network, _, _) in found.items()},
        frozenset(name for name, (_, untrained, _) in found.items() if untrained),
        {name: note for name, (_, _, note) in found.items() if note},
    )


def needed_roles(recipe: Recipe, models: Mapping[str, ModelLike]) -> tuple[str, ...]:
    """The roles that have to be filled from outside; a recipe that makes its student takes one all the same."""
    student = ("student",) if "student" in models or not recipe.makes_student else ()
    return (*student, "teacher") if recipe.needs_teacher else student


def stages_for(recipe: Recipe, cast: Cast, task: Task, *, untrained: bool = False) -> tuple[Stage, ...]:
    """The recipe's stages for these models, after everything that can be checked beforehand.

    Args:
        recipe, cast, task: of the run.
        untrained: allow a student with random weights that no stage trains, where only its size is asked for.

    Raises:
        BitstillError: a model does not fit the task, or would be quantized untrained.
    """
    for name, network in cast.networks.items():
        check_model(name, network, task)
    stages = recipe.stages(RunContext(task.objective, cast.networks, cast.untrained))
    if not untrained:
        check_student(stages, cast)
    return stages


def check_student(stages: Sequence[Stage], cast: Cast) -> None:
    """Refuse to quantize random weights: a student built by name must be trained by some stage.

    Raises:
        SpecError: no stage moves its weights.
    """
    moved = any(stage.terms and "student" in stage.train and stage.parameters != "learned" for stage in stages)
    if "student" in cast.untrained and not moved:
        raise SpecError(
            "a trained student",
            given="one whose weights, or whose classifier's, are random",
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
            replay(action, models, task)
        stage.check_models(models)
        if stage.pruning is not None:
            stage.pruning.finish(models[stage.pruning.model])
        if stage.terms:
            _rehearse_step(stage, models, task)
    return models


def _rehearse_step(stage: Stage, models: dict[str, nn.Module], task: Task) -> None:
    """One forward pass of every term on a few samples, without a gradient."""
    batch = task.sample()
    teachers = {term.teacher for term in stage.terms if term.teacher and term.teacher not in stage.train}
    with torch.random.fork_rng(), torch.no_grad():
        targets = {name: run(models[name].eval(), task, batch, taps(stage, name)) for name in teachers}
        TrainingStep(stage, models, task).eval()(batch, targets, 0.0, False)


def check_model(name: str, network: nn.Module, task: Task) -> None:
    """Refuse weights that are not finite, and inputs and outputs that do not fit the task."""
    for tensor_name, tensor in stored_tensors(network).items():
        if tensor.is_floating_point():
            check_finite(tensor.detach(), f"{name}: {tensor_name}")
    _check_vocabulary(name, network, task)
    task.check_model(network, name)


def _check_vocabulary(name: str, network: nn.Module, task: Task) -> None:
    if word_embeddings(network) is None or "input_ids" not in task.train.inputs:
        return
    largest = max(int(split.inputs["input_ids"].max()) for split in (task.train, task.validation, task.test))
    limit = readable_tokens(network)
    longest = max(split.inputs["input_ids"].shape[1] for split in (task.train, task.validation, task.test))
    if limit is not None and limit < longest:
        fix = f"Set --max-length to at most {limit}, or choose a model that reads longer texts."
        raise DataError(f"texts of at most {limit} tokens", given=f"{longest}", where=f"{name}, {task.name}", fix=fix)
    check_rows(name, network, largest, task.name)


def check_rows(name: str, network: nn.Module, largest: int, data: str) -> None:
    """Refuse a model whose word embeddings have no row for token `largest` of the data.

    Raises:
        DataError: naming the model.
    """
    table = word_embeddings(network)
    if table is None:
        return
    weight = network.get_submodule(table).weight
    assert isinstance(weight, Tensor)
    if largest >= len(weight):
        fix = "Teacher, student and tokenizer must share one vocabulary."
        given = f"an embedding of {len(weight)} rows"
        raise DataError(f"a model that knows token {largest}", given=given, where=f"{name}, {data}", fix=fix)


def readable_tokens(network: nn.Module) -> int | None:
    """How long a text may be, or None where the model does not say."""
    limit = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, module in network.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            return limit - padding - 1  # RoBERTa's first positions, up to that of padding, belong to no word
    return limit


def _network(model: ModelLike, seed: int, role: str, task: Task) -> tuple[nn.Module, bool, dict[str, Any]]:
    """The network, whether it is untrained, and a note for the report."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).cpu(), False, {}
    if isinstance(model, str) and model in MODELS:
        return build(model, seed, role, task.objective.width), True, {}
    if is_import_path(model):
        return *import_network(str(model), seed, role), {}
    if is_artifact(model):
        return _from_artifact(model, role), False, {}
    if not (Path(model).is_dir() or "input_ids" in task.train.inputs or str(model).count("/") == 1):
        wanted = "a known model, or the folder of an artifact or of a Hugging Face model"
        raise SpecError(wanted, given=repr(str(model)), where=role, fix=suggest(str(model), MODELS))
    need_package("transformers", extra="all", purpose=f"loading {str(model)!r}")
    from bitstill.hf.models import load_pretrained

    loaded = load_pretrained(str(model), task, role, seed)
    return loaded.model, bool(loaded.new), {"source": str(model), "new": list(loaded.new), "unused": list(loaded.unused)}


def is_artifact(source: ModelLike) -> bool:
    """Whether `source` is a folder with an artifact; one that cannot be read counts, so that its error is shown."""
    if isinstance(source, nn.Module) or not Path(source).is_dir():
        return False
    try:
        config = json.loads((Path(source) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return not isinstance(config, dict) or "quantization_config" in config or "model_type" not in config


def _from_artifact(folder: str | Path | nn.Module, role: str) -> nn.Module:
    assert not isinstance(folder, nn.Module)
    archive = read(folder)
    loaded = load_into(from_architecture(archive.config), archive)
    if role == "student" and any(is_packed(module) for module in loaded.modules()):
        raise SpecError(
            "a float student",
            given=f"an artifact that is compressed already, {str(folder)!r}",
            where=role,
            fix="Start from the float network, or from an artifact delivered with bits=None (--bits none).",
        )
    return loaded.requires_grad_(role == "student")
