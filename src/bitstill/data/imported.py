"""User-defined tasks and networks, given as `package.module:Name` in a run file or on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitstill.data.task import Task
from bitstill.data.text import TextTask
from bitstill.errors import SpecError
from bitstill.import_path import import_object
from bitstill.model.copies import copy_model
from bitstill.model.state import stored_tensors
from bitstill.rng import derive


def import_task(path: str, data: Path | None = None) -> Task | TextTask:
    """Import a task.

    Args:
        path: import path of a `Task`, or of a function from the folder of local files (or None) to a `Task`.
        data: that folder.

    Raises:
        SpecError: no such object, or it is no task.
    """
    task = import_object(path, "task")
    if callable(task):
        _check_arguments(task, (data,), path, "a function of the data folder that returns a Task")
        task = task(data)
    elif data is not None:
        fix = "Leave --data out, or name a function of the data folder."
        raise SpecError("a task that reads files", given=f"{path!r}, which has its data", where="task", fix=fix)
    if not isinstance(task, (Task, TextTask)):
        fix = "Name a bitstill.data.Task, or a function that returns one."
        raise SpecError("a Task", given=f"{path!r}, {_kind(task)}", where="task", fix=fix)
    return task


def import_network(path: str, seed: int, role: str) -> tuple[nn.Module, bool]:
    """Import a network, and tell whether its weights are random.

    Weights are random if they depend on the seed. A network that loads its weights counts as trained.

    Args:
        path: import path of a network, or of its class or a function that builds it without arguments.
        seed: seed of the run.
        role: role of the network ("teacher"), so that two of the same class start differently.

    Raises:
        SpecError: no such object, or it is no network.
    """
    source = import_object(path, role)
    if isinstance(source, nn.Module):
        return copy_model(source, role).cpu(), False
    if not callable(source):
        fix = "Name a torch.nn.Module, its class, or a function that returns one."
        raise SpecError("a network", given=f"{path!r}, {_kind(source)}", where=role, fix=fix)
    _check_arguments(source, (), path, "a network's class or a function, which needs no arguments")
    network, other = (_make(source, path, role, derive(seed, "init", role, path, number)) for number in range(2))
    tensors, others = stored_tensors(network), stored_tensors(other)
    return network, any(name not in others or not torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def _make(source: Callable[[], Any], path: str, role: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = source()
    if not isinstance(network, nn.Module):
        fix = "Return a torch.nn.Module."
        raise SpecError("a network", given=f"what {path!r} returns, {_kind(network)}", where=role, fix=fix)
    return network.cpu()


def _check_arguments(function: Callable[..., Any], arguments: tuple[Any, ...], path: str, expected: str) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        fix = "Change its signature, or name a function that calls it."
        raise SpecError(expected, given=f"{path!r} ({error})", where="import", fix=fix) from None


def _kind(value: object) -> str:
    return f"which is of type {type(value).__name__}"
