"""Rehearsal: every stage runs one step on copies of the models, so that errors surface before training starts."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from bitstill.data.task import Task
from bitstill.errors import SpecError, TrainingError
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.copies import copy_models
from bitstill.model.modes import set_training, stays_in_eval
from bitstill.train.batches import check_shares
from bitstill.train.run import Data, data_for
from bitstill.train.stage import Stage, replay
from bitstill.train.step import TrainingStep, run, taps

REENTRANT = "None of the inputs have requires_grad=True"
"""Warning that torch issues when a reentrant checkpoint cuts off the gradient."""


def rehearse(
    stages: Sequence[Stage], networks: Mapping[str, nn.Module], data: Data, accumulate: int = 1
) -> dict[str, nn.Module]:
    """Start every stage on copies of the models, and evaluate its terms once on a few samples.

    Args:
        stages: stages in order.
        networks: models by name; they are not changed.
        data: training data of the stages.
        accumulate: parts into which a batch is split.

    Returns:
        The copies, with their final structure.

    Raises:
        BitstillError: a pattern or a layer pair matches nothing, a model is unknown, layers cannot be compressed or are never
            called though their weight is used, batches cannot be split as requested, or trained models get no gradient.
    """
    models = copy_models(networks)
    for stage in stages:
        task = data_for(stage, data)
        for action in stage.begin:
            replay(action, models, task)
        stage.check_models(models)
        if stage.pruning is not None:
            stage.pruning.finish(models[stage.pruning.model])
        if stage.terms:
            _rehearse_step(stage, models, task, accumulate)
    return models


def _rehearse_step(stage: Stage, models: dict[str, nn.Module], task: Task, accumulate: int) -> None:
    """Run one forward pass of every term in train mode, on as few samples as a part of a batch may have."""
    whole = min(stage.batch_size, len(task.train))
    check_shares(whole, stage, int(os.environ.get("WORLD_SIZE", "1")), accumulate)
    batch = task.sample(min(2, whole // accumulate))  # processes share batch statistics
    teachers = {term.teacher for term in stage.terms if term.teacher and term.teacher not in stage.train}
    step = TrainingStep(stage, models, task)
    with torch.random.fork_rng():
        with torch.no_grad():
            targets = {name: run(models[name].eval(), task, batch, taps(stage, name)) for name in teachers}
        set_training(step, stays_in_eval(step))
        with _refusals(stage, len(batch["labels"])), _layers_that_run(step) as running:
            total = step(batch, targets, 0.0, False)[0]
    if not total.requires_grad:
        fix = "Its forward must not run under torch.no_grad, nor all its parameters be frozen."
        where = f"stage {stage.name!r}"
        raise TrainingError("outputs with a gradient", given="none", where=where, fix=fix)
    _check_calls(stage, step, running, total)


@contextlib.contextmanager
def _refusals(stage: Stage, samples: int) -> Iterator[None]:
    """Turn torch's messages about an impossible training step into errors with a fix.

    Raises:
        SpecError: a norm computes its statistics from a single value.
        TrainingError: a checkpoint blocks the gradient.
    """
    where = f"stage {stage.name!r}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=REENTRANT)
            yield
    except UserWarning as warning:
        if REENTRANT not in str(warning):
            raise
        fix = "Checkpoint with use_reentrant=False."
        given = "none through a reentrant checkpoint, whose inputs need no gradient"
        raise TrainingError("a gradient for every block", given=given, where=where, fix=fix) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        fix = "Take a larger batch size or a smaller `accumulate`, or keep the norm in eval mode."
        given = f"parts of {samples}, in which a batch norm has no variance"
        raise SpecError("parts of at least 2 samples", given=given, where=where, fix=fix) from None


@contextlib.contextmanager
def _layers_that_run(step: nn.Module) -> Iterator[set[nn.Module]]:
    """Collect the compressed layers that are called within the block."""
    running: set[nn.Module] = set()

    def note(layer: nn.Module, _inputs: object) -> None:
        running.add(layer)

    handles = [module.register_forward_pre_hook(note) for module in step.modules() if is_compressed(module)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _check_calls(stage: Stage, step: TrainingStep, running: set[nn.Module], total: Tensor) -> None:
    """Refuse compressed layers whose weight is used without calling the layer: it would train in float.

    A layer that is not used at all is allowed: it may be an expert that only other samples need.

    Raises:
        SpecError: there is such a layer; the message names it.
    """
    silent = [(n, m) for n, m in step.models.named_modules() if is_compressed(m) and m not in running]
    if not silent:
        return
    total.backward()
    used = [name for name, module in silent if isinstance(module.weight, Tensor) and module.weight.grad is not None]
    step.zero_grad(set_to_none=True)
    if used:
        raise SpecError(
            "compressed layers that are called",
            given="a forward that computes with the weight alone, as F.linear(x, layer.weight) does",
            where=f"stage {stage.name!r}, {used[0]}",
            fix="Call the layer, or add it to `ignore`.",
        )
