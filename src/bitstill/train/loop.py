"""The one loop: forward each model once, add up the weighted terms, backward, clip, step, log.

Every stage of every recipe runs through `_run_stage`. Devices, processes and wrapping come from Accelerate; autocast, gradient
accumulation and seeding are explicit lines, so that what a step computes can be read here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from bitstill.data.shuffle import uniform
from bitstill.data.task import Batch, Task, evaluate
from bitstill.errors import SpecError, TrainingError, suggest
from bitstill.model.lifecycle import freeze
from bitstill.model.weight_transform import belongs_to_quantizer
from bitstill.rng import derive
from bitstill.schedules import at
from bitstill.train import checkpoint
from bitstill.train.actions import Compress, CompressAttention
from bitstill.train.checkpoint import Best, Checkpoint, Position
from bitstill.train.following import Following
from bitstill.train.optim import parameter_groups, set_learning_rate
from bitstill.train.sampler import Sampler, steps_per_epoch
from bitstill.train.stage import Deciding, Stage
from bitstill.train.step import TrainingStep, check_gradients
from bitstill.train.teachers import Teachers, fast_bf16

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
PROBED_STEPS = 10
"""Steps within which every term must have shown a gradient."""


@dataclass(frozen=True)
class Settings:
    """How a run is carried out, as opposed to what it learns.

    Args:
        seed: of everything random.
        precision: "float32", or "bf16" for autocast of what is trained; scales are computed in float32 either way.
        teacher_precision: "auto" runs frozen teachers in bf16 where the hardware is fast at it.
        accumulate: parts into which a batch is split to save memory; the gradient is the same.
        checkpoint_every: steps between checkpoints; None is once per epoch.
        device: "auto" is an accelerator if there is one, else the CPU. CUDA_VISIBLE_DEVICES chooses among several.
        trackers: what Accelerate logs to: "tensorboard", "wandb", "mlflow" and so on.
        progress: show a progress bar.
    """

    seed: int = 0
    precision: Literal["float32", "bf16"] = "float32"
    teacher_precision: Literal["auto", "float32", "bf16"] = "auto"
    accumulate: int = 1
    checkpoint_every: int | None = None
    device: Literal["auto", "cpu"] = "auto"
    trackers: tuple[str, ...] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("accumulate", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(
                    f"{name} of at least 1", given=str(value), where="Settings", fix="Leave it out for the default."
                )


@dataclass
class Run:
    """A run under way: models by name, the task, and where it is."""

    stages: Sequence[Stage]
    models: dict[str, nn.Module]
    task: Task
    settings: Settings
    accelerator: Accelerator
    identity: Mapping[str, Any]
    checkpoint_path: Path | None
    position: Position = field(default_factory=Position)
    best: Best | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """What has been logged, oldest first."""
        if self.position.history is None:
            self.position.history = []
        return self.position.history

    def save(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Write a checkpoint, on the main process."""
        if self.checkpoint_path is not None and self.accelerator.is_main_process:
            checkpoint.save(self.checkpoint_path, self.models, optimizer, self.position, self.identity, self.best)


def train(
    stages: Sequence[Stage],
    models: dict[str, nn.Module],
    task: Task,
    settings: Settings,
    *,
    identity: Mapping[str, Any] | None = None,
    checkpoint_path: Path | None = None,
    resume: bool = False,
    finished: Callable[[Stage], None] | None = None,
) -> list[dict[str, Any]]:
    """Run `stages` one after the other; `models` is changed in place and may gain entries.

    Args:
        stages: in order.
        models: by the names that the stages use.
        task: what is learned.
        settings: how.
        identity: what makes this run this run, for resuming.
        checkpoint_path: where to keep the checkpoint; None keeps none.
        resume: continue from the checkpoint, if there is one.
        finished: called on the main process when a stage has trained, before the checkpoint says so.

    Returns:
        What was logged: one dict per entry with stage, step, and loss or validation metric.

    Raises:
        TrainingError: a term without gradient, or a loss that is not finite.
        CheckpointError: the checkpoint is damaged or belongs to another run.
    """
    run = Run(stages, models, task, settings, accelerator(settings), dict(identity or {}), checkpoint_path)
    loaded: Checkpoint | None = None
    if resume and checkpoint_path is not None and checkpoint_path.exists():
        loaded = _restore(run, checkpoint_path)
    # Whoever looks for the checkpoint of an earlier run must not find the first one of this run.
    run.accelerator.wait_for_everyone()
    with torch.random.fork_rng():
        for index in range(run.position.stage, len(stages)):
            stage = stages[index]
            if not run.position.begun:
                _begin(run, stage)
                run.position.begun = True
                run.save()
            stage.check_models(run.models)
            if stage.terms:
                _run_stage(run, stage, loaded)
                if finished is not None and run.accelerator.is_main_process:
                    finished(stage)
            loaded = None
            run.position = Position(index + 1, 0, False, run.history, run.position.decisions)
            run.save()
    for tracker in run.accelerator.trackers:  # not `end_training`, which ends the group of processes, too: more may be trained
        tracker.finish()
    return run.history


def accelerator(settings: Settings) -> Accelerator:
    """Accelerate's view of devices, processes and trackers."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, LoggerType, ProjectConfiguration

    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    trackers = list(settings.trackers) or None
    known = LoggerType.list()
    for name in settings.trackers:
        if name not in known:
            raise SpecError("a known tracker", given=repr(name), where="settings.trackers", fix=suggest(name, known))
    found = Accelerator(
        cpu=settings.device == "cpu" or not torch.accelerator.is_available(),
        log_with=trackers,
        project_config=ProjectConfiguration(project_dir="runs"),
        kwargs_handlers=handlers,
    )
    if settings.device == "cpu" and found.device.type != "cpu":
        raise SpecError(
            "device='cpu' from the first run of a process on",
            given=f"a process that has used {found.device}",
            where="Settings",
            fix="Start a new process for it.",
        )
    if found.num_processes > 1:
        _leave_the_group_at_exit()
    if trackers:
        found.init_trackers("bitstill")
    return found


@functools.cache
def _leave_the_group_at_exit() -> None:
    """A process that ends with its group still open may be aborted by threads of that group."""
    atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())


def hardware_identity(settings: Settings) -> dict[str, Any]:
    """What else decides the bytes of a run: device, number of processes, and the teacher's precision as it comes out here."""
    found = accelerator(replace(settings, trackers=()))
    bf16 = _teacher_bf16(settings, found.device)
    return {"device": found.device.type, "processes": found.num_processes, "teacher_bf16": bf16}


def _restore(run: Run, path: Path) -> Checkpoint:
    loaded = Checkpoint(path, run.identity)
    run.position = loaded.position
    last = run.position.stage + (1 if run.position.begun else 0)
    for stage in run.stages[:last]:
        for place, action in enumerate(stage.begin):
            if isinstance(action, Deciding):
                action.repeat(run.models, run.position.decisions[f"{stage.name}/{place}"])
            else:
                action.replay(run.models, run.task)
    loaded.restore_models(run.models)
    run.best = loaded.best
    return loaded


def _begin(run: Run, stage: Stage) -> None:
    for place, action in enumerate(stage.begin):
        seed = derive(run.settings.seed, stage.name)
        if not isinstance(action, Deciding):
            action.apply(run.models, run.task, seed)
            continue
        decision = _of_the_first(run, action.decide(run.models, run.task, seed))
        action.repeat(run.models, decision)
        run.position.decisions[f"{stage.name}/{place}"] = decision
        run.history.append({"stage": stage.name, "step": 0, "decided": {type(action).__name__: decision}})


def _run_stage(run: Run, stage: Stage, loaded: Checkpoint | None) -> None:
    task, settings, device = run.task, run.settings, run.accelerator.device
    total = stage.total_steps(len(task.train))
    teachers = Teachers(stage, run.models, task, device, _teacher_bf16(settings, device))
    step_module: nn.Module = TrainingStep(stage, run.models, task).to(device)
    several = run.accelerator.num_processes > 1
    with _trainable(step_module, stage.parameters), _synced_norms(step_module) if several else contextlib.nullcontext():
        named = [(name, p) for name, p in step_module.named_parameters() if p.requires_grad]
        optimizer = stage.optimizer.build(parameter_groups(named, stage.optimizer))
        if loaded is not None and run.position.step:
            loaded.restore_optimizer(optimizer)
        parameters = [p for _, p in named]
        follow = Following(step_module, optimizer)
        if several:  # curvatures are equal in all processes, and large: they need no broadcast with each step
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(step_module, follow.buffers)
        wrapped = run.accelerator.prepare(step_module) if several else step_module
        probed: dict[str, float] = {}
        logger = _Logger(run, stage, total)
        sampler = Sampler(task.train, stage.batch_size, settings.seed, "order", stage.name)
        if run.position.step == 0 and stage.keep == "best" and _continues(run, stage):
            _keep_best(run, stage, 0, logger.judge(0))
        for step in logger.bar(range(run.position.step, total)):
            step_module.train()
            progress = step / total
            if stage.pruning is not None:
                stage.pruning.before(step, total, run.models[stage.pruning.model])
            # In the middle of the step, so that neither a warm-up nor a decay gives a step of zero.
            set_learning_rate(optimizer, at(stage.optimizer.lr, (step + 0.5) / total))
            probe = step < PROBED_STEPS
            loss, values, norms = _accumulate(run, stage, wrapped, teachers, sampler(step), step, progress, probe)
            if stage.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
            optimizer.step()
            follow()
            optimizer.zero_grad(set_to_none=True)
            if probe:
                probed = {name: probed.get(name, 0.0) + float(norm) for name, norm in norms.items()}
                if step == min(PROBED_STEPS, total) - 1:
                    check_gradients(probed, stage)
            run.position.step = step + 1
            validation = logger.log(step + 1, loss, values)
            if stage.keep == "best" and logger.validates(step + 1):
                _keep_best(run, stage, step + 1, validation)
            if (step + 1) % (settings.checkpoint_every or steps_per_epoch(len(task.train), stage.batch_size)) == 0:
                logger.check(step + 1, float(loss))
                run.save(optimizer)
        if run.best is not None:
            run.best.restore(_trained(run, stage))
            run.history.append({"stage": stage.name, "step": run.best.step, "kept": run.best.value})
            run.best = None


def _of_the_first(run: Run, value: T) -> T:
    """What the main process has: the others may differ in the last bit, and must not decide otherwise."""
    if run.accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    found: T = broadcast_object_list([value])[0]
    return found


def _trained(run: Run, stage: Stage) -> dict[str, nn.Module]:
    return {name: run.models[name] for name in stage.train}


def _continues(run: Run, stage: Stage) -> bool:
    """Whether what the stage begins with has been trained in the form in which it would be delivered."""
    trained = any(stage.train[0] in earlier.train for earlier in run.stages[: run.position.stage])
    return trained and not any(isinstance(action, (Compress, CompressAttention)) for action in stage.begin)


def _keep_best(run: Run, stage: Stage, step: int, validation: float | None) -> None:
    """Remember the weights if no delivered form was judged better before; every process decides the same.

    Of equals the later is kept: where the metric is saturated, the first has hardly trained.
    """
    validation = _of_the_first(run, validation)
    assert validation is not None
    if math.isfinite(validation) and (run.best is None or validation >= run.best.value):
        run.best = Best.of(_trained(run, stage), step, validation)


def _accumulate(
    run: Run, stage: Stage, wrapped: nn.Module, teachers: Teachers, whole: Tensor, step: int, progress: float, probe: bool
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Forward and backward over all parts of one batch; returns mean loss, mean term values and summed gradient norms."""
    settings, accelerator = run.settings, run.accelerator
    parts = settings.accumulate
    losses: list[Tensor] = []
    all_values: list[dict[str, Tensor]] = []
    all_norms: list[dict[str, Tensor]] = []
    for part in range(parts):
        indices = share_of(whole, stage, accelerator, parts, part)
        batch = make_batch(run.task, stage, indices, step, settings.seed, accelerator.device)
        targets = teachers(batch)
        # Dropout and stochastic rounding: a function of where we are, not of what was drawn before.
        torch.manual_seed(derive(settings.seed, stage.name, step, part, accelerator.process_index))
        last = part == parts - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss, values, norms = wrapped(batch, targets, progress, probe)
            (loss / parts).backward()
        losses.append(loss.detach())
        all_values.append(values)
        all_norms.append(norms)
    return torch.stack(losses).mean(), _mean(all_values), _mean(all_norms)


def share_of(whole: Tensor, stage: Stage, accelerator: Accelerator, parts: int = 1, part: int = 0) -> Tensor:
    """What this process sees in part `part` of a batch.

    Raises:
        SpecError: if the batch cannot be shared out evenly.
    """
    shares = accelerator.num_processes * parts
    if len(whole) % shares:
        raise SpecError(
            f"a batch that {accelerator.num_processes} processes x {parts} parts can share evenly",
            given=f"{len(whole)} samples",
            where=f"stage {stage.name!r}",
            fix="Change the batch size, or `accumulate`.",
        )
    share = len(whole) // shares
    first = (accelerator.process_index * parts + part) * share
    return whole[first : first + share]


def make_batch(task: Task, stage: Stage, indices: Tensor, step: int, seed: int, device: torch.device) -> Batch:
    """The training batch of samples `indices`, augmented if the stage says so, on `device`."""
    batch = task.train.take(indices)
    if stage.augment and task.augment is not None:
        batch = task.augment(batch, uniform(derive(seed, "augment", stage.name, step), indices, task.draws))
    return {name: tensor.to(device) for name, tensor in batch.items()}


class _Logger:
    """Progress bar, curves and trackers of one stage; stops a run whose loss is no longer finite."""

    def __init__(self, run: Run, stage: Stage, total: int) -> None:
        self.run, self.stage, self.total = run, stage, total
        self.every = max(1, total // 100)
        self.validate_every = stage.validate_every(len(run.task.train))
        self.pending: list[Tensor] = []
        self._bar: tqdm[int] | None = None

    def bar(self, steps: range) -> Iterator[int]:
        """`steps`, with a progress bar on the main process."""
        shown = self.run.settings.progress and self.run.accelerator.is_main_process
        options = {"total": self.total, "initial": steps.start, "desc": self.stage.name, "unit": "step"}
        self._bar = tqdm(steps, disable=not shown, mininterval=0.5, leave=False, dynamic_ncols=True, **options)
        yield from self._bar

    def validates(self, step: int) -> bool:
        """Whether the delivered form is judged after `step`."""
        return step % self.validate_every == 0 or step == self.total

    def log(self, step: int, loss: Tensor, values: Mapping[str, Tensor]) -> float | None:
        """Note the loss of a finished step, and now and then the metric of the delivered form on the validation split.

        Returns:
            That metric, on the main process.
        """
        self.pending.append(loss)
        last = step == self.total
        entry: dict[str, Any] = {"stage": self.stage.name, "step": step}
        if step % self.every == 0 or last:
            entry["loss"] = float(torch.stack(self.pending).mean())
            self.pending.clear()
            self.check(step, entry["loss"])
            entry |= {name: float(value) for name, value in values.items()}
        if self.validates(step) and self.run.accelerator.is_main_process:
            entry["validation"] = self._validate()
        if len(entry) > 2:
            self.run.history.append(entry)
            self._show(entry)
        return entry.get("validation")

    def judge(self, step: int) -> float | None:
        """Note the metric of the delivered form on the validation split, and return it, on the main process."""
        if not self.run.accelerator.is_main_process:
            return None
        value = self._validate()
        self.run.history.append({"stage": self.stage.name, "step": step, "validation": value})
        return value

    def check(self, step: int, loss: float) -> None:
        """Raise `TrainingError` if `loss` is NaN or infinite."""
        if not math.isfinite(loss):
            raise TrainingError(
                "a finite loss",
                given=str(loss),
                where=f"stage {self.stage.name!r}, step {step}",
                fix="Lower the learning rate, or set clip_norm; the last checkpoint is from before.",
            )

    def _validate(self) -> float:
        student = self.run.models[self.stage.train[0]]
        return evaluate(freeze(student), self.run.task, self.run.task.validation)

    def _show(self, entry: dict[str, Any]) -> None:
        shown = {key: f"{entry[key]:.4g}" for key in ("loss", "validation") if key in entry}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
        if self.run.settings.trackers:
            scalars = {f"{self.stage.name}/{key}": value for key, value in entry.items() if key not in ("stage", "step")}
            self.run.accelerator.log(scalars, step=entry["step"])


@contextlib.contextmanager
def _trainable(module: nn.Module, which: str) -> Iterator[None]:
    """Within the block, parameters that the stage does not train need no gradient."""
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
    # torch.distributed takes a while to import, and most runs have one process.
    from bitstill.train.synced_norm import synced_norms

    return synced_norms(module)


def _teacher_bf16(settings: Settings, device: torch.device) -> bool:
    if settings.teacher_precision == "auto":
        return fast_bf16(device)
    return settings.teacher_precision == "bf16"


def _mean(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
