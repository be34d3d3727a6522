"""`dry_run`: the effect of a run on each layer and the bytes it would deliver, without training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bitstill.artifact.reader import read
from bitstill.artifact.size import size_report, to_json
from bitstill.artifact.writer import write
from bitstill.decode import encode
from bitstill.model.contents import contents_of
from bitstill.model.lifecycle import freeze, report
from bitstill.report.stage_plan import stage_plans
from bitstill.run.driver import prepare_run
from bitstill.run.job import Job
from bitstill.train.run import data_for


def dry_run(job: Job) -> dict[str, Any]:
    """Plan the run, compress the untrained student and pack it: its bytes are those of the trained one.

    Only entropy coding, points redistributed by gradient, and splitting within a budget depend on training; with these the
    bytes are an estimate. A corpus is tokenized into a temporary folder.

    Returns:
        Stages in words (`report.stage_plan`) with their steps, every parameter with its treatment, and the size report.

    Raises:
        BitstillError: as `compress` before training, except that an untrained student is allowed: its bytes are the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(job, Path(folder) / "out", untrained=True)
        student, artifact = run.rehearsed["student"], Path(folder) / "artifact"
        artifact.mkdir()
        write(artifact, contents_of(freeze(student, job.storage.leftovers)), {}, job.storage)
        size = size_report(read(artifact))
    samples = {stage.name: len(data_for(stage, run.data).train) for stage in run.stages}
    return {
        "recipe": encode(job.recipe),
        "task": run.task.name,
        "stages": [
            {**encode(plan), "steps": stage.total_steps(samples[stage.name])}
            for stage, plan in zip(run.stages, stage_plans(run.stages), strict=True)
        ],
        "parameters": [encode(row) for row in report(student).rows],
        "size": to_json(size),
    }
