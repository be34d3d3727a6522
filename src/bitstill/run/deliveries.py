"""Deliveries of a run: an artifact, or an ordinary folder of a Hugging Face model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bitstill.artifact.files import check_new, check_target, replaced_folder, write_file
from bitstill.artifact.format import CONFIG, REPORT
from bitstill.artifact.reader import read
from bitstill.artifact.size import size_report
from bitstill.artifact.writer import Storage, write
from bitstill.data.task import Task, assess, evaluate
from bitstill.decode import encode
from bitstill.deliver.deliver import deliver, measure
from bitstill.deliver.soundness import result_warnings, warn
from bitstill.errors import ArtifactError, SpecError
from bitstill.model.contents import contents_of
from bitstill.model.copies import copy_model
from bitstill.model.lifecycle import report as prepare_report
from bitstill.model.lifecycle import uncompressed
from bitstill.model.packed_layers import is_packed
from bitstill.run.driver import PreparedRun
from bitstill.train.checkpoint import checkpoint_of
from bitstill.train.stage import Stage


@dataclass(frozen=True)
class ArtifactDelivery:
    """The student as an artifact: frozen, packed, written, reloaded, compared and evaluated.

    Args:
        recipe_yaml: the run as a run file for `bitstill compress`.
        each_stage: also deliver the student after every stage but the last, to `out`-<stage>.
        force: replace an existing artifact.
    """

    recipe_yaml: str
    each_stage: bool = False
    force: bool = False

    def check_place(self, out: Path, stopped: bool) -> None:
        """Check that `out` is free, or holds an artifact that may be replaced."""
        self._check(out, stopped)

    def check(self, run: PreparedRun, out: Path) -> None:
        """Check the folders of the stages in the same way."""
        for stage in self._on_the_way(run):
            self._check(stage_folder(out, stage), checkpoint_of(out).exists())

    def stage_finished(self, run: PreparedRun, out: Path, stage: Stage, report: Mapping[str, Any]) -> None:
        """Deliver the student of this stage, with `each_stage`."""
        if stage in self._on_the_way(run):
            self._deliver(run, stage_folder(out, stage), {**report, "stage": stage.name})

    def write(self, run: PreparedRun, out: Path, report: Mapping[str, Any]) -> None:
        """Deliver the student, and measure the teacher by the same procedure."""
        teacher = {"teacher": _teacher_row(run.networks["teacher"], run.task)} if "teacher" in run.networks else {}
        self._deliver(run, out, {**report, **teacher})

    def _check(self, folder: Path, stopped: bool) -> None:
        """Check that `folder` can be written, and holds no artifact that must not be replaced.

        Raises:
            ArtifactError: it cannot, or does.
        """
        check_target(folder)
        if not (self.force or stopped) and (folder / CONFIG).exists():
            fix = "Choose another --out, or add --force to replace it, or --resume if this run was interrupted."
            raise ArtifactError("a new or an empty folder", given="a finished artifact", where=str(folder), fix=fix)

    def _on_the_way(self, run: PreparedRun) -> list[Stage]:
        return [stage for stage in run.stages[:-1] if "student" in stage.train] if self.each_stage else []

    def _deliver(self, run: PreparedRun, folder: Path, report: Mapping[str, Any]) -> None:
        student, storage = run.networks["student"], run.job.storage
        parameters = [encode(row) for row in prepare_report(student).rows]
        complete = {**report, "storage": encode(storage), "parameters": parameters}
        skeleton, strict = uncompressed(run.rehearsed["student"]), run.job.strict and "stage" not in report
        deliver(folder, student, run.task, storage, complete, self.recipe_yaml, skeleton, strict=strict)


def stage_folder(out: Path, stage: Stage) -> Path:
    """Folder of the student delivered after `stage`, with `each_stage`."""
    return out.with_name(f"{out.name}-{stage.name.replace(' ', '-')}")


@dataclass(frozen=True)
class PretrainedDelivery:
    """The student in float, saved by transformers, reloaded and evaluated."""

    def check_place(self, out: Path, stopped: bool) -> None:
        """Check that the folder is new or empty."""
        check_new(out)

    def check(self, run: PreparedRun, out: Path) -> None:
        """Check that transformers can save the student.

        Raises:
            SpecError: it cannot.
        """
        if not hasattr(run.rehearsed["student"], "save_pretrained"):
            given = repr(run.job.models.get("student"))
            fix = "Other networks cannot be saved as one; train them with `compress`."
            raise SpecError("the folder or hub name of a Hugging Face model", given=given, where="student", fix=fix)

    def stage_finished(self, run: PreparedRun, out: Path, stage: Stage, report: Mapping[str, Any]) -> None:
        """Do nothing: there is only one stage."""

    def write(self, run: PreparedRun, out: Path, report: Mapping[str, Any]) -> None:
        """Save, reload and evaluate."""
        from bitstill.hf.pretrained import save_pretrained

        task, networks = run.task, run.networks
        with replaced_folder(out) as folder:
            save_pretrained(networks["student"], task, folder)
            reloaded = self._reload(run, folder)
            delivered = {**assess(reloaded, task, task.test), "validation": evaluate(reloaded, task, task.validation)}
            sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
            complete = {**report, "delivered": delivered, "parameters": sizes, "train_samples": len(task.train)}
            doubts = [] if run.job.task is None else result_warnings(complete)
            warn(doubts, run.job.strict, str(out))
            complete["warnings"] = [*report.get("warnings", ()), *doubts]
            write_file(folder / REPORT, json.dumps(complete, indent=1, sort_keys=True).encode())

    def _reload(self, run: PreparedRun, folder: Path) -> nn.Module:
        if run.job.task is None:
            from bitstill.hf.pretrained import load_encoder

            return load_encoder(str(folder), "distilled model").model
        from bitstill.hf.pretrained import load_pretrained

        return load_pretrained(str(folder), run.task, "fine-tuned model").model


def _teacher_row(teacher: nn.Module, task: Task) -> dict[str, Any]:
    """Metric and bytes of the teacher, measured like the student's."""
    metric = task.objective.decides
    if any(is_packed(module) for module in teacher.modules()):  # loaded from an artifact: already the delivered form
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), contents_of(copy_model(teacher).cpu()), {}, Storage())
            file_bytes = size_report(read(folder)).file_bytes
        return {"metric": metric, "test": evaluate(teacher, task, task.test), "file_bytes": file_bytes}
    measured = measure(teacher, task, copy_model(teacher))
    return {"metric": metric, "test": measured.metric, "file_bytes": measured.size.file_bytes}
