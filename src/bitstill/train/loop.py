"""The one loop: every stage of every recipe, of fine-tuning and of general distillation runs through it.

A step, in the order of events: move the masks, set the learning rate, run teachers and students on the batch, add up the
weighted terms, backward, clip, step, update the quantizers' state, log, evaluate, save. Devices, processes and wrapping come
from Accelerate; autocast, gradient accumulation and seeding are explicit, so that everything a step computes is visible here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bitstill.data.task import Task
from bitstill.model.modes import set_training, stays_in_eval
from bitstill.model.weight_transform import belongs_to_quantizer
from bitstill.rng import derive
from bitstill.schedules import at
from bitstill.train.actions import Compress, CompressAttention
from bitstill.train.batches import make_batch, share_of
from bitstill.train.checkpoint import Best, Checkpoint
from bitstill.train.log import StageLog
from bitstill.train.optim import parameter_groups, set_learning_rate
from bitstill.train.optimizer_step import after_optimizer_step, quantizer_buffers
from bitstill.train.run import Data, Run, data_for
from bitstill.train.sampler import Sampler, steps_per_epoch
from bitstill.train.settings import Settings, accelerator, teachers_in_bf16
from bitstill.train.sign_changes import note_sign_changes
from bitstill.train.stage import Stage
from bitstill.train.step import TrainingStep, check_gradients
from bitstill.train.stopping import StopRequest, stop_requests
from bitstill.train.teachers import Teachers

PROBED_STEPS = 10
"""Number of first steps within which every term must produce a gradient."""


def train(
    stages: Sequence[Stage],
    models: dict[str, nn.Module],
    data: Task | Data,
    settings: Settings,
    *,
    identity: Mapping[str, Any] | None = None,
    checkpoint_path: Path | None = None,
    resume: bool = False,
    finished: Callable[[Stage], None] | None = None,
) -> list[dict[str, Any]]:
    """Run `stages` in order; `models` is changed in place and may gain entries.

    Args:
        stages: in order.
        models: models by the names that the stages use.
        data: training data: a task, or several data sets by the names that the stages use.
        settings: seed, precision, device and checkpoints.
        identity: identity of the run, compared on resume.
        checkpoint_path: path of the checkpoint; None writes none.
        resume: continue from the checkpoint if it exists.
        finished: callback on the main process after a stage has trained, before the checkpoint records it.

    Returns:
        Log entries, each a dict with stage, step, and loss or validation metric.

    Raises:
        TrainingError: a term without gradient, or a loss that is not finite.
        CheckpointError: the checkpoint is damaged or belongs to another run.
    """
    sets: Data = {"task": data} if isinstance(data, Task) else data
    run = Run(stages, models, sets, settings, accelerator(settings), dict(identity or {}), checkpoint_path)
    loaded = run.resume() if resume else None
    # A process that looks for an earlier run's checkpoint must not see the first one of this run.
    run.accelerator.wait_for_everyone()
    with torch.random.fork_rng(), stop_requests() as request:
        for stage in stages[run.position.stage :]:
            if not run.position.begun:
                run.begin(stage)
            stage.check_models(run.models)
            if stage.terms:
                train_stage(run, stage, loaded, request)
                if finished is not None and run.accelerator.is_main_process:
                    finished(stage)
            loaded = None
            run.finish_stage()
            request.obey()
    for tracker in run.accelerator.trackers:  # not `end_training`, which also ends the process group: more runs may follow
        tracker.finish()
    return run.history


def train_stage(run: Run, stage: Stage, loaded: Checkpoint | None, request: StopRequest) -> None:
    """Train one stage from the run's position to its end.

    Args:
        run: run whose models are trained.
        stage: stage whose actions have been applied.
        loaded: checkpoint to resume from, or None.
        request: request to stop after the current step.
    """
    task, settings = data_for(stage, run.data), run.settings
    total = stage.total_steps(len(task.train))
    save_every = settings.checkpoint_every or steps_per_epoch(len(task.train), stage.batch_size)
    sampler = Sampler(task.train, stage.batch_size, settings.seed, "order", stage.name)
    with _trainee(run, stage, task) as trainee:
        if loaded is not None and run.position.step:
            loaded.restore_optimizer(trainee.optimizer)
        in_eval = stays_in_eval(trainee.module)
        log, norms = StageLog(run, stage), dict.fromkeys((term.name for term in stage.terms), 0.0)
        if run.position.step == 0:
            note_sign_changes(run, stage)
        if run.position.step == 0 and stage.keep == "best" and _continues(run, stage):
            _keep_best(run, stage, 0, log.judge(0))
        for step in log.steps():
            set_training(trainee.module, in_eval)
            if stage.pruning is not None:
                stage.pruning.before(step, total, run.models[stage.pruning.model])
            # In the middle of the step, so that neither a warm-up nor a decay gives a step of zero.
            set_learning_rate(trainee.optimizer, at(stage.optimizer.lr, (step + 0.5) / total))
            parts = _forward_backward(run, stage, trainee, sampler(step), step, step / total)
            if stage.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(trainee.parameters, stage.clip_norm)
            trainee.optimizer.step()
            after_optimizer_step(trainee.module, trainee.optimizer)
            trainee.optimizer.zero_grad(set_to_none=True)
            run.position.step = step + 1
            if step < PROBED_STEPS:
                norms = {name: norms[name] + float(norm) for name, norm in parts.norms.items()}
                if step == min(PROBED_STEPS, total) - 1:
                    check_gradients(norms, stage)
            validation = log.note(step + 1, parts.loss, parts.terms)
            if stage.keep == "best" and log.validates(step + 1):
                _keep_best(run, stage, step + 1, validation)
            if (step + 1) % save_every == 0 or request.signal is not None:
                log.check(step + 1, float(parts.loss))
                log.keep_losses()
                run.save(trainee.optimizer)
            request.obey()
        if run.best is not None:
            run.best.restore(run.trained_by(stage))
            run.history.append({"stage": stage.name, "step": run.best.step, "kept": run.best.value})
            run.best = None


@dataclass(frozen=True)
class _Trainee:
    """The trained part of a stage.

    Args:
        module: the step as one module, wrapped for several processes.
        optimizer: optimizer of `parameters`.
        parameters: trained parameters.
        teachers: frozen teachers.
        task: training data.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    teachers: Teachers
    task: Task


@contextlib.contextmanager
def _trainee(run: Run, stage: Stage, task: Task) -> Iterator[_Trainee]:
    """Place the models of a stage on the device with a fresh optimizer; inside the block only its parameters need gradients."""
    device, several = run.accelerator.device, run.accelerator.num_processes > 1
    teachers = Teachers(stage, run.models, task, device, teachers_in_bf16(run.settings, device))
    module: nn.Module = TrainingStep(stage, run.models, task).to(device)
    with _trainable(module, stage.parameters), _synced_norms(module) if several else contextlib.nullcontext():
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        optimizer = stage.optimizer.build(parameter_groups(named, stage.optimizer))
        if several:  # second moments are equal in all processes, and large: no need to broadcast them at each step
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, quantizer_buffers(module))
            module = run.accelerator.prepare(module)
        yield _Trainee(module, optimizer, [parameter for _, parameter in named], teachers, task)


@dataclass(frozen=True)
class _Parts:
    """Means over the parts of one batch: the loss, and the value and gradient norm of each term."""

    loss: Tensor
    terms: dict[str, Tensor]
    norms: dict[str, Tensor]


def _forward_backward(run: Run, stage: Stage, trainee: _Trainee, whole: Tensor, step: int, progress: float) -> _Parts:
    """Run forward and backward over all parts of one batch; gradients accumulate in the parameters."""
    settings, accelerator = run.settings, run.accelerator
    parts, outcomes = settings.accumulate, []
    for part in range(parts):
        indices = share_of(whole, stage, accelerator, parts, part)
        batch = make_batch(trainee.task, stage, indices, step, settings.seed, accelerator.device)
        targets = trainee.teachers(batch)
        # Dropout and stochastic rounding are functions of the position in the run, not of earlier draws.
        torch.manual_seed(derive(settings.seed, stage.name, step, part, accelerator.process_index))
        with contextlib.nullcontext() if part == parts - 1 else accelerator.no_sync(trainee.module):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss, terms, norms = trainee.module(batch, targets, progress, step < PROBED_STEPS)
            (loss / parts).backward()
        outcomes.append((loss.detach(), terms, norms))
    losses, all_terms, all_norms = zip(*outcomes, strict=True)
    return _Parts(torch.stack(losses).mean(), _mean(all_terms), _mean(all_norms))


def _continues(run: Run, stage: Stage) -> bool:
    """Whether the stage's initial weights were trained in the form in which they would be delivered."""
    trained = any(stage.train[0] in earlier.train for earlier in run.stages[: run.position.stage])
    return trained and not any(isinstance(action, (Compress, CompressAttention)) for action in stage.begin)


def _keep_best(run: Run, stage: Stage, step: int, validation: float | None) -> None:
    """Keep the weights if no earlier delivered form was better; every process decides alike.

    A tie goes to the later weights: where the metric is saturated, the earliest have hardly trained.
    """
    validation = run.agree(validation)
    assert validation is not None
    if math.isfinite(validation) and (run.best is None or validation >= run.best.value):
        run.best = Best.of(run.trained_by(stage), step, validation)


@contextlib.contextmanager
def _trainable(module: nn.Module, which: str) -> Iterator[None]:
    """Inside the block, parameters that the stage does not train need no gradient."""
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    for name, parameter in module.named_parameters():
        learned = belongs_to_quantizer(name)
        if (which == "weights" and learned) or (which == "learned" and not learned):
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _synced_norms(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    # torch.distributed is slow to import, and most runs have one process.
    from bitstill.train.synced_norm import synced_norms

    return synced_norms(module)


def _mean(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
