"""Variants of a text task's training texts, kept in a folder that `compress` can train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from bitstill.data.augmentation import Augmentation, Method, Proposer, examples, write_variants
from bitstill.data.catalogue import load_task
from bitstill.data.text import TextOptions, TextTask
from bitstill.errors import SpecError, need_package, suggest

EXAMPLES = 3


def augment(
    task: str,
    model: str,
    out: str | Path,
    *,
    method: str = "masked-lm",
    vectors: str | Path | None = None,
    options: Augmentation | None = None,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make variants of a task's training texts by exchanging words (Jiao et al. 2020), for `compress(..., augmented=out)`.

    What is held out of train for choices is left alone, and labels are those of the texts that variants are made of. The same
    arguments give the same bytes; a run that was stopped goes on where it was.

    Args:
        task: a GLUE task, or "text" for files of your own.
        model: folder or hub name: a masked language model, or for "neighbours" any with word embeddings.
        out: a folder.
        method: "masked-lm" takes what the model predicts for a masked word, and neighbours for words of several tokens;
            "neighbours" takes them for all words.
        vectors: a file of word embeddings in GloVe's format, in which neighbours are looked up; None takes the model's own.
        options: how many variants, and how different.
        data, text: as for `compress`.
        progress: show progress bars.

    Returns:
        How many variants of how many texts there are, and some examples.

    Raises:
        SpecError: unknown task or method, or a task without texts.
        DataError: no such model, or a folder that holds something else.
    """
    need_package("transformers", extra="all", purpose="augmentation")
    if method not in get_args(Method):
        raise SpecError("a known method", given=repr(method), where="augment", fix=suggest(method, get_args(Method)))
    found = load_task(task, None if data is None else Path(data), text)
    if not isinstance(found, TextTask):
        fix = "Pictures and sounds are augmented while they are read: --augment of `bitstill compress`."
        raise SpecError("a task of texts", given=repr(task), where="augment", fix=fix)
    folder = Path(out)
    count = write_variants(
        found, _proposer(model, method, vectors, progress), options or Augmentation(), folder, progress=progress
    )
    return {"task": task, "texts": len(found.train), "variants": count, "examples": examples(found, folder, EXAMPLES)}


def _proposer(model: str, method: str, vectors: str | Path | None, progress: bool) -> Proposer:
    from bitstill.hf.candidates import MaskedLanguageModel, neighbours_from_file, own_neighbours

    neighbours = own_neighbours(model) if vectors is None else neighbours_from_file(Path(vectors))
    if method == "neighbours":
        return neighbours
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return MaskedLanguageModel(model, neighbours, device or torch.device("cpu"), progress=progress)
