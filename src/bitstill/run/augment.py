"""`augment`: variants of a text task's training texts, in a folder that `compress` can train on."""

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
    """Generate variants of a task's training texts by replacing words (Jiao et al. 2020), for `compress(..., augmented=out)`.

    Texts held out for validation are not varied, and a variant has the label of its original. The same arguments give the same
    bytes; an interrupted run is resumed.

    Args:
        task: a GLUE task, or "text" for your own files.
        model: folder or hub name of a masked language model, or for "neighbours" of any model with word embeddings.
        out: folder for the variants.
        method: "masked-lm" replaces a word by the model's prediction for it, or by a nearest neighbour if it has several
            tokens; "neighbours" uses nearest neighbours for all words.
        vectors: file of word embeddings in GloVe's format for nearest neighbours; None uses the model's own.
        options: number of variants, and how much they differ.
        data, text: as for `compress`.
        progress: show progress bars.

    Returns:
        Numbers of variants and of texts, and some examples.

    Raises:
        SpecError: unknown task or method, or a task without texts.
        DataError: no such model, or `out` holds something else.
    """
    need_package("transformers", extra="all", purpose="augmentation")
    if method not in get_args(Method):
        raise SpecError("a known method", given=repr(method), where="augment", fix=suggest(method, get_args(Method)))
    text_task = load_task(task, None if data is None else Path(data), text)
    if not isinstance(text_task, TextTask):
        fix = "Images and sounds are augmented on the fly: --augment of `bitstill compress`."
        raise SpecError("a task of texts", given=repr(task), where="augment", fix=fix)
    folder = Path(out)
    count = write_variants(
        text_task, _proposer(model, method, vectors, progress), options or Augmentation(), folder, progress=progress
    )
    return {"task": task, "texts": len(text_task.train), "variants": count, "examples": examples(text_task, folder, EXAMPLES)}


def _proposer(model: str, method: str, vectors: str | Path | None, progress: bool) -> Proposer:
    from bitstill.hf.candidates import MaskedLanguageModel, neighbours_from_file, own_neighbours

    neighbours = own_neighbours(model) if vectors is None else neighbours_from_file(Path(vectors))
    if method == "neighbours":
        return neighbours
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return MaskedLanguageModel(model, neighbours, device or torch.device("cpu"), progress=progress)
