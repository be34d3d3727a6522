"""Built-in tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bitstill.data import cifar10, digits, glue, speech, text
from bitstill.data.imported import import_task
from bitstill.data.task import Task
from bitstill.data.text import TextOptions, TextTask
from bitstill.errors import SpecError, suggest
from bitstill.import_path import is_import_path

TASKS: dict[str, Callable[[Path | None], Task | TextTask]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
    **{name: partial(glue.load, name) for name in glue.GLUE},
    **{name: partial(speech.load, name) for name in speech.SPEECH},
}
TEXT = "text"
"""Name of the task that reads the user's own text files."""


def load_task(name: str, data: Path | None = None, options: TextOptions | None = None) -> Task | TextTask:
    """Load the task `name`.

    Args:
        name: a key of `TASKS`, "text", or `package.module:Name` for another task.
        data: folder with local files for it; None looks in `$BITSTILL_DATA`, then on the hub.
        options: format of the user's own files, for the task "text".

    Raises:
        SpecError: unknown name, or options for a task other than "text".
        DataError: the data are missing or damaged.
    """
    if name == TEXT:
        return text.load(data, options or TextOptions())
    if options is not None:
        fix = "Use --task text for your own files; the columns of published sets are known."
        raise SpecError("the task 'text' with text options", given=repr(name), where="task", fix=fix)
    if is_import_path(name):
        return import_task(name, data)
    if name not in TASKS:
        fix = f"{suggest(name, {*TASKS, TEXT})} Your own: package.module:Name."
        raise SpecError("a known task", given=repr(name), where="task", fix=fix)
    return TASKS[name](data)
