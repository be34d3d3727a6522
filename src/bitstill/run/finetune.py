"""`finetune`: a teacher from a pretrained encoder, saved as a Hugging Face folder, reloaded and evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from bitstill.artifact.format import REPORT
from bitstill.data.text import TextOptions
from bitstill.errors import need_package
from bitstill.recipes.fine_tuning import FineTuning
from bitstill.run.deliveries import PretrainedDelivery
from bitstill.run.driver import execute
from bitstill.run.job import Job
from bitstill.train.settings import Settings


def finetune(
    model: str,
    task: str,
    out: str | Path,
    *,
    recipe: FineTuning | None = None,
    settings: Settings | None = None,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None,
    resume: bool = False,
    strict: bool = False,
) -> dict[str, Any]:
    """Fine-tune a pretrained encoder on a task's labels.

    Args:
        model: folder or hub name of the encoder.
        task: name of a text or image task.
        out: a new or empty folder, for any tool that reads Hugging Face models.
        recipe: epochs, learning rate and so on.
        settings: seed, precision, checkpoints.
        data: a folder with local files.
        text: columns and so on, for the task "text".
        class_weights: weights of the loss on labels, one per class, or "balanced".
        resume: resume an unfinished run.
        strict: raise an error instead of a warning where the fine-tuned model is worth little.

    Returns:
        Contents of report.json: metric of the model reloaded from `out`, and the training history.

    Raises:
        BitstillError: invalid input, see its subclasses; nothing at `out` is damaged.
    """
    need_package("transformers", extra="all", purpose="fine-tuning")
    target = Path(out).resolve()
    job = Job(
        recipe or FineTuning(), {"student": model}, task, settings or Settings(),
        data=data, text=text, class_weights=class_weights, strict=strict,
    )  # fmt: skip
    execute(job, PretrainedDelivery(), target, resume=resume)
    return dict(json.loads((target / REPORT).read_text(encoding="utf-8")))
