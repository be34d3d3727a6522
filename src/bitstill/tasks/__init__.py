"""Real data sets and the models that published systems train on them, found by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitstill.errors import SpecError, suggest
from bitstill.tasks import cifar10, digits
from bitstill.train.task import Task

TASKS: dict[str, Callable[[Path | None], Task]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
}


def load_task(name: str, data: Path | None = None) -> Task:
    """The task `name`.

    Args:
        name: a key of `TASKS`.
        data: a folder with local files for it; None looks in `$BITSTILL_DATA/<name>`, then on the hub.

    Raises:
        SpecError: unknown name.
        DataError: the data are missing or damaged.
    """
    if name not in TASKS:
        raise SpecError("a known task", given=repr(name), where="task", fix=suggest(name, TASKS))
    return TASKS[name](data)
