"""A task by name, as the models of a run read it: text tasks need the tokenizer of whoever reads them."""

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
    """The task `name`, tokenized where it is text.

    Args:
        name: of one of bitstill's tasks, or `package.module:Name` for another.
        sources: models by role; those that are folders or hub names have tokenizers, which must agree.
        data: a folder with local files.
        text: columns, longest text and so on, for the task "text".
        tokenizer: of transformers, where no model brings one.
        augmented: a folder with variants of a text task's training texts (`bitstill.augment`), which are trained on as well.

    Raises:
        SpecError: unknown task, options for a task that takes none, or no tokenizer.
        DataError: data are missing or damaged, or vocabularies differ.
        MissingPackageError: a text task without transformers.
    """
    found = load_task(name, None if data is None else Path(data), text)
    if not isinstance(found, TextTask):
        if augmented is not None:
            fix = "Pictures and sounds are augmented while they are read."
            raise SpecError("a text task for variants of texts", given=repr(name), where="augmented", fix=fix)
        return found
    if augmented is not None:
        found = with_variants(found, Path(augmented))
    need_package("transformers", extra="all", purpose="text tasks")
    from bitstill.hf.tokenize import input_names, shared_tokenizers, tokenize

    if tokenizer is not None:
        return tokenize(found, tokenizer)
    named = {role: str(source) for role, source in sources.items() if not isinstance(source, nn.Module)}
    named = {role: source for role, source in named.items() if not is_import_path(source)}
    tokenizers = shared_tokenizers(named)
    if not tokenizers:
        raise SpecError(
            "a tokenizer for a text task",
            given="networks only",
            where=f"task {name!r}",
            fix="Name a model by its folder or hub name, or pass the task made by bitstill.text_task(name, tokenizer).",
        )
    return tokenize(found, tokenizers[0], names=input_names(tokenizers))


def text_task(
    name: str,
    tokenizer: Any,
    *,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    augmented: str | Path | None = None,
) -> Task:
    """A text task as a model with `tokenizer` reads it, for networks that are handed to `compress` as objects.

    Args:
        name: a GLUE task, or "text" for files of your own.
        tokenizer: of transformers, or the folder or hub name of a model that has one.
        data: a folder with local files.
        text: columns, longest text and so on, for the task "text".
        augmented: as for `compress`.

    Raises:
        SpecError: unknown task.
        DataError: data are missing or damaged.
    """
    if isinstance(tokenizer, (str, Path)):
        return task_for(name, {"tokenizer": tokenizer}, data, text, augmented=augmented)
    return task_for(name, {}, data, text, tokenizer, augmented)
