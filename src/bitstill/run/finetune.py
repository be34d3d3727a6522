"""A teacher for a task from a pretrained encoder: fine-tuned, saved as a Hugging Face folder, read back and evaluated."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bitstill.artifact.files import check_new, replaced_folder, write_file
from bitstill.artifact.format import REPORT
from bitstill.data.task import evaluate
from bitstill.data.text import TextOptions
from bitstill.decode import encode
from bitstill.deliver.deliver import environment
from bitstill.deliver.load_task import task_for
from bitstill.errors import SpecError, need_package
from bitstill.recipes.fine_tuning import FineTuning
from bitstill.run.roles import resolve_models, stages_for
from bitstill.train.checkpoint import checkpoint_beside
from bitstill.train.identity import identity_of
from bitstill.train.loop import train
from bitstill.train.settings import Settings


def finetune(
    model: str,
    task_name: str,
    out: str | Path,
    *,
    recipe: FineTuning | None = None,
    settings: Settings | None = None,
    data: str | Path | None = None,
    text: TextOptions | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Fine-tune a pretrained encoder on a task's labels.

    Args:
        model: folder or hub name.
        task_name: a text task.
        out: a new or empty folder, which any tool that reads Hugging Face models can read afterwards.
        recipe: epochs, learning rate and so on.
        settings: seed, precision, checkpoints.
        data: a folder with local files.
        text: columns and so on, for the task "text".
        resume: continue a run that was stopped.

    Returns:
        What report.json says: the metric of the model that was read back from `out`, and the training history.

    Raises:
        BitstillError: its subclasses say what was wrong; nothing at `out` is damaged.
    """
    started = time.perf_counter()
    need_package("transformers", extra="all", purpose="fine-tuning")
    from bitstill.hf.models import load_pretrained, save_pretrained

    recipe, settings, target = recipe or FineTuning(), settings or Settings(), Path(out).resolve()
    check_new(target)
    task = task_for(task_name, {"student": model}, data, text)
    cast = resolve_models(recipe, {"student": model}, settings.seed, task)
    if "student" not in cast.notes:
        fix = "Only such a model can be saved as one; train networks of your own with `compress`."
        raise SpecError("the folder or hub name of a Hugging Face model", given=repr(model), where="finetune", fix=fix)
    stages = stages_for(recipe, cast, task)
    identity = identity_of(encode(recipe), stages, task, cast.networks, settings)
    work = checkpoint_beside(target, resume)
    history = train(stages, cast.networks, task, settings, identity=identity, checkpoint_path=work, resume=resume)
    with replaced_folder(target) as folder:
        save_pretrained(cast.networks["student"], task, folder)
        delivered = load_pretrained(str(folder), task, "fine-tuned model").model
        report = {
            "recipe": encode(recipe),
            "task": task.name,
            "settings": encode(settings),
            "models": cast.notes,
            "history": history,
            "delivered": {
                "metric": task.objective.decides,
                "test": evaluate(delivered, task, task.test),
                "validation": evaluate(delivered, task, task.validation),
                "samples": len(task.test),
            },
            "wall_seconds": time.perf_counter() - started,
            **environment(),
        }
        write_file(folder / REPORT, json.dumps(report, indent=1, sort_keys=True).encode())
    work.unlink(missing_ok=True)
    return report
