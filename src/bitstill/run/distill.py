"""General distillation: a smaller encoder for any task, saved as an ordinary Hugging Face folder, read back and compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitstill.artifact.format import REPORT
from bitstill.data.corpus import Corpus
from bitstill.errors import need_package
from bitstill.recipes.general_distillation import GeneralDistillation
from bitstill.run.deliveries import PretrainedDelivery
from bitstill.run.driver import execute
from bitstill.run.job import Job
from bitstill.train.settings import Settings


def distill(
    model: str,
    corpus: Corpus | str,
    out: str | Path,
    *,
    student: str | None = None,
    recipe: GeneralDistillation | None = None,
    settings: Settings | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Distil an encoder into a smaller one on plain text, for any task (Jiao et al. 2020).

    Args:
        model: the teacher: folder or hub name of an encoder, with a head or without; it is not fine-tuned.
        corpus: plain text; a string is a `Corpus` with its defaults.
        out: a new or empty folder, which any tool that reads Hugging Face models can read afterwards.
        student: folder or hub name of the smaller encoder, or a folder with its config.json alone; None makes it of layers of
            the teacher.
        recipe: layers, losses, epochs.
        settings: seed, precision, checkpoints.
        cache: folder for the tokenized corpus, which other runs can use too; None is `out` with ".tokens" behind it.
        resume: continue a run that was stopped; tokenizing the corpus is resumed either way.

    Returns:
        What report.json says: how similar the hidden states of the student that was read back from `out` are to its teacher's,
        and the training history.

    Raises:
        BitstillError: its subclasses say what was wrong; nothing at `out` is damaged.
    """
    need_package("transformers", extra="all", purpose="general distillation")
    target = Path(out).resolve()
    source = Corpus(corpus) if isinstance(corpus, str) else corpus
    models = {"teacher": model} if student is None else {"teacher": model, "student": student}
    complete = replace(recipe or GeneralDistillation(), corpus=source)
    job = Job(complete, models, settings=settings or Settings(), cache=cache)
    execute(job, PretrainedDelivery(), target, resume=resume)
    return dict(json.loads((target / REPORT).read_text(encoding="utf-8")))
