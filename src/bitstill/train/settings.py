"""Settings of a run: seed, precision, device, checkpoints; and Accelerate's view of the hardware."""

from __future__ import annotations

import atexit
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from bitstill.constraints import Count, Seed, check_fields
from bitstill.errors import MissingPackageError, SpecError, suggest
from bitstill.train.teachers import fast_bf16

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Settings:
    """Execution of a run, as opposed to what it learns.

    Args:
        seed: seed of all randomness.
        precision: "float32", or "bf16" to train under autocast; scales are computed in float32 either way.
        teacher_precision: "auto" runs frozen teachers in bf16 where the hardware is fast at it.
        accumulate: parts into which a batch is split to save memory. The gradient is the mean over the parts, equal to that of
            the whole batch unless the model mixes samples or padding differs between parts. Batch normalisation computes its
            statistics on each part, which needs at least two samples, and updates its running ones once per part.
        checkpoint_every: steps between checkpoints; None is once per epoch.
        device: "auto" is an accelerator if available, else the CPU. CUDA_VISIBLE_DEVICES selects among several.
        trackers: names of Accelerate's trackers: "tensorboard", "wandb", "mlflow" and so on.
        progress: show a progress bar.
    """

    seed: Seed = 0
    precision: Literal["float32", "bf16"] = "float32"
    teacher_precision: Literal["auto", "float32", "bf16"] = "auto"
    accumulate: Count = 1
    checkpoint_every: Count | None = None
    device: Literal["auto", "cpu"] = "auto"
    trackers: tuple[str, ...] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


def check_trackers(settings: Settings) -> None:
    """Refuse trackers that cannot log.

    Raises:
        MissingPackageError: a tracker's package is not installed.
        SpecError: an unknown tracker.
    """
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = LoggerType.list()
    for name in settings.trackers:
        if name not in known:
            raise SpecError("a known tracker", given=repr(name), where="settings.trackers", fix=suggest(name, known))
        if name != "all" and LoggerType(name) not in get_available_trackers():
            fix = "Install its package, or take it out of the trackers."
            raise MissingPackageError(f"the package of {name}", given="none", where="settings.trackers", fix=fix)


def accelerator(settings: Settings) -> Accelerator:
    """Accelerate's view of devices, processes and trackers.

    Raises:
        MissingPackageError: a tracker's package is not installed.
        SpecError: an unknown tracker, or device="cpu" in a process that has already used an accelerator.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

    check_trackers(settings)
    accelerator = Accelerator(
        cpu=settings.device == "cpu" or not torch.accelerator.is_available(),
        log_with=list(settings.trackers) or None,
        project_config=ProjectConfiguration(project_dir="runs"),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if settings.device == "cpu" and accelerator.device.type != "cpu":
        raise SpecError(
            "device='cpu' from the first run of the process",
            given=f"a process that has already used {accelerator.device}",
            where="Settings",
            fix="Start a new process.",
        )
    if accelerator.num_processes > 1:
        _leave_the_group_at_exit()
    if settings.trackers:
        accelerator.init_trackers("bitstill")
    return accelerator


def hardware_identity(settings: Settings) -> dict[str, Any]:
    """The hardware's part of a run's identity: device, number of processes, and whether teachers run in bf16."""
    hardware = accelerator(replace(settings, trackers=()))
    bf16 = teachers_in_bf16(settings, hardware.device)
    return {"device": hardware.device.type, "processes": hardware.num_processes, "teacher_bf16": bf16}


def teachers_in_bf16(settings: Settings, device: torch.device) -> bool:
    """Whether frozen teachers run under bf16 autocast."""
    if settings.teacher_precision == "auto":
        return fast_bf16(device)
    return settings.teacher_precision == "bf16"


@functools.cache
def _leave_the_group_at_exit() -> None:
    """Close the process group at exit: its threads may abort a process that ends with the group still open."""
    atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())
