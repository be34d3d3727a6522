"""`distill`: general distillation of a smaller encoder, saved as an ordinary Hugging Face folder."""

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
        model: teacher: folder or hub name of an encoder, with or without a head; it is not fine-tuned.
        corpus: plain text; a string is a `Corpus` with default settings.
        out: a new or empty folder, for any tool that reads Hugging Face models.
        student: folder or hub name of the smaller encoder, or a folder with only its config.json; None builds it from layers of
            the teacher.
        recipe: layers, losses, epochs.
        settings: seed, precision, checkpoints.
        cache: folder for the tokenized corpus, reusable by other runs; None is `out` with the suffix ".tokens".
        resume: resume an unfinished run; tokenizing the corpus is always resumed.

    Returns:
        Contents of report.json: similarity of the hidden states of teacher and reloaded student, and the training history.

    Raises:
        BitstillError: invalid input, see its subclasses; nothing at `out` is damaged.
    """
    need_package("transformers", extra="all", purpose="general distillation")
    target = Path(out).resolve()
    source = Corpus(corpus) if isinstance(corpus, str) else corpus
    models = {"teacher": model} if student is None else {"teacher": model, "student": student}
    complete = replace(recipe or GeneralDistillation(), corpus=source)
    job = Job(complete, models, settings=settings or Settings(), cache=cache)
    execute(job, PretrainedDelivery(), target, resume=resume)
    return dict(json.loads((target / REPORT).read_text(encoding="utf-8")))
