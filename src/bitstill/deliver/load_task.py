"""Tasks by name, ready for the models of a run: text tasks are tokenized by the models' tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.data.augmentation import with_variants
from bitstill.data.catalogue import load_task
from bitstill.data.task import Task
from bitstill.data.text import TextOptions, TextTask
from bitstill.errors import SpecError, need_package
from bitstill.import_path import is_import_path


def task_for(
    name: str,
    sources: Mapping[str, nn.Module | str | Path],
    data: str | Path | None = None,
    text: TextOptions | None = None,
    tokenizer: Any = None,
    augmented: str | Path | None = None,
) -> Task:
    """Load the task `name`, tokenized if it is text.

    Args:
        name: name of a built-in task, or `package.module:Name` for another.
        sources: models by role; those given as folders or hub names have tokenizers, of which the first is used.
        data: folder with local files.
        text: columns, maximal length and so on, for the task "text".
        tokenizer: tokenizer of transformers, if no model has one.
        augmented: folder with variants of a text task's training texts (`bitstill.augment`) to train on as well.

    Raises:
        SpecError: unknown task, options for a task that takes none, or no tokenizer.
        DataError: data are missing or damaged, or a model has no tokenizer.
        MissingPackageError: a text task without transformers.
    """
    task = load_task(name, None if data is None else Path(data), text)
    if not isinstance(task, TextTask):
        if augmented is not None:
            fix = "Images and sounds are augmented on the fly."
            raise SpecError("a text task for variants of texts", given=repr(name), where="augmented", fix=fix)
        return task
    if augmented is not None:
        task = with_variants(task, Path(augmented))
    need_package("transformers", extra="all", purpose="text tasks")
    from bitstill.hf.tokenize import input_names, load_tokenizers, tokenize

    if tokenizer is not None:
        return tokenize(task, tokenizer)
    named = {role: str(source) for role, source in sources.items() if not isinstance(source, nn.Module)}
    named = {role: source for role, source in named.items() if not is_import_path(source)}
    tokenizers = load_tokenizers(named)
    if not tokenizers:
        raise SpecError(
            "a tokenizer for a text task",
            given="networks only",
            where=f"task {name!r}",
            fix="Name a model by its folder or hub name, or pass the task made by bitstill.text_task(name, tokenizer).",
        )
    return tokenize(task, tokenizers[0], names=input_names(tokenizers))


def text_task(
    name: str,
    tokenizer: Any,
    *,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    augmented: str | Path | None = None,
) -> Task:
    """Load a text task tokenized by `tokenizer`, for networks passed to `compress` as objects.

    Args:
        name: a GLUE task, or "text" for your own files.
        tokenizer: tokenizer of transformers, or the folder or hub name of a model that has one.
        data: folder with local files.
        text: columns, maximal length and so on, for the task "text".
        augmented: as for `compress`.

    Raises:
        SpecError: unknown task.
        DataError: data are missing or damaged.
    """
    if isinstance(tokenizer, (str, Path)):
        return task_for(name, {"tokenizer": tokenizer}, data, text, augmented=augmented)
    return task_for(name, {}, data, text, tokenizer, augmented)
