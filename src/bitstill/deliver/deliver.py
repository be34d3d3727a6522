"""Delivery of a trained model: freeze, pack, write, reload, check, evaluate, report.

Only the reloaded model is evaluated. Before that, its effective weights are compared with the frozen model's, bit for bit; a
difference is a defect, and nothing is delivered.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from bitstill import _version
from bitstill.artifact.card import model_card
from bitstill.artifact.digests import renew_digests
from bitstill.artifact.files import replaced_folder, write_file
from bitstill.artifact.format import CARD, RECIPE, REPORT
from bitstill.artifact.reader import read
from bitstill.artifact.size import SizeReport, check_size, size_report, to_json
from bitstill.artifact.writer import Storage, write
from bitstill.data.task import Task, assess
from bitstill.deliver.architecture import architecture_of, blank_network, can_rebuild
from bitstill.deliver.soundness import result_warnings, warn
from bitstill.errors import ArtifactError, SpecError
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.contents import contents_of
from bitstill.model.copies import copy_model
from bitstill.model.lifecycle import freeze, uncompressed
from bitstill.model.packed_layers import is_packed
from bitstill.model.restore import load_into
from bitstill.model.wrappers import unwrapped


@dataclass(frozen=True)
class Delivered:
    """A reloaded artifact, its size and its metrics."""

    model: nn.Module
    size: SizeReport
    assessment: dict[str, Any]

    @property
    def metric(self) -> float:
        """The deciding metric on the test split."""
        return float(self.assessment["test"])


def write_artifact(
    folder: Path, model: nn.Module, task: Task, storage: Storage, skeleton: nn.Module | None = None
) -> Delivered:
    """Deliver `model` into the existing `folder`, reload it from there, check it and evaluate it on the test split.

    Args:
        folder: an empty folder.
        model: prepared or float.
        task: task on whose test split it is evaluated.
        storage: storage options for leftovers and codes.
        skeleton: a float network of the same architecture, if that is not built in.

    Raises:
        ArtifactError: the reloaded model differs from the written one, or the file is larger than its arithmetic.
    """
    about = {**_head(model, task), "task": task.name, "metric": task.objective.decides, "task_options": dict(task.options)}
    reloaded, size = write_network(folder, model, storage, about, skeleton)
    if task.preprocessor is not None:
        task.preprocessor.save(folder)
    return Delivered(reloaded, size, assess(reloaded, task, task.test))


def write_network(
    folder: Path,
    model: nn.Module,
    storage: Storage,
    about: Mapping[str, Any] = MappingProxyType({}),
    skeleton: nn.Module | None = None,
) -> tuple[nn.Module, SizeReport]:
    """Freeze `model`, write its codes into the existing `folder`, reload it from there and check every weight and its size.

    Args:
        folder: an empty folder.
        model: prepared or float; not changed.
        storage: storage options for leftovers and codes.
        about: further entries of `config.json`.
        skeleton: a float network of the same architecture, if `config.json` cannot describe it; None uses the layers that
            `model` had before it was prepared.

    Returns:
        The reloaded network, and its size.

    Raises:
        ArtifactError: the reloaded network differs from the written one, or the file is larger than its arithmetic.
    """
    model = unwrapped(model, "save")
    frozen = freeze(model, storage.leftovers).cpu()
    architecture = architecture_of(model)
    write(folder, contents_of(frozen), {**architecture, **about}, storage)
    archive = read(folder)
    # If the file describes its architecture, it will be loaded from the description, so it is checked that way.
    if can_rebuild(architecture):
        blank = blank_network(archive)
    else:
        blank = uncompressed(model) if skeleton is None else copy_model(skeleton)
    reloaded = load_into(blank, archive)
    _check_parity(frozen, reloaded, folder)
    size = size_report(archive)
    check_size(size, folder)
    return reloaded, size


def save(model: nn.Module, folder: str | Path, *, storage: Storage | None = None, tokenizer: Any = None) -> SizeReport:
    """Save a prepared network, trained in any loop, as an artifact: freeze, pack, write, reload, check every weight.

    Args:
        model: from `prepare`; not changed, so that training can continue.
        folder: destination; an older artifact there is replaced atomically.
        storage: storage options for leftovers and codes.
        tokenizer: tokenizer of transformers, saved with the model.

    Returns:
        The size report.

    Raises:
        ArtifactError: the folder cannot be written, or holds something else.
        SpecError: the model has run without calling all its compressed layers, or a wrapper hides its weights.
    """
    _check_calls(unwrapped(model, "save"))
    with replaced_folder(Path(folder)) as beside:
        _, size = write_network(beside, model, storage or Storage())
        if tokenizer is not None:
            from bitstill.hf.tokenize import Tokenizer

            Tokenizer(tokenizer).save(beside)
            renew_digests(beside)
        write_file(beside / REPORT, json.dumps({"size": to_json(size), **environment()}, indent=1, sort_keys=True).encode())
    return size


def deliver(
    target: Path,
    model: nn.Module,
    task: Task,
    storage: Storage,
    report: Mapping[str, Any],
    recipe_yaml: str,
    skeleton: nn.Module | None = None,
    *,
    strict: bool = False,
) -> tuple[Delivered, dict[str, Any]]:
    """Write the whole artifact to `target`, which changes only after everything has succeeded.

    Args:
        target: destination; an older artifact there is replaced atomically.
        model, task, storage, skeleton: as for `write_artifact`.
        report: report of the run, to which size and metric are added.
        recipe_yaml: the resolved run file.
        strict: refuse a model that is worth little, rather than warn of it.

    Returns:
        The reloaded artifact, and the complete report.

    Raises:
        TrainingError: the model is worth little, and the run is strict.
    """
    from bitstill.report.page import artifact_page

    with replaced_folder(target) as folder:
        delivered = write_artifact(folder, model, task, storage, skeleton)
        complete = {
            **report,
            "delivered": delivered.assessment,
            "size": to_json(delivered.size),
        }
        doubts = result_warnings(complete)
        warn(doubts, strict, str(target))
        complete["warnings"] = [*report.get("warnings", ()), *doubts]
        write_file(folder / RECIPE, recipe_yaml.encode())
        renew_digests(folder)
        write_file(folder / REPORT, json.dumps(complete, indent=1, sort_keys=True).encode())
        write_file(folder / CARD, model_card(complete, target.name).encode())
        write_file(folder / "report.html", artifact_page(complete, model).encode())
    return delivered, complete


def measure(model: nn.Module, task: Task, skeleton: nn.Module | None = None) -> Delivered:
    """Deliver `model` to a temporary folder, reload and evaluate it, as for a teacher's row in a table."""
    with tempfile.TemporaryDirectory() as folder:
        return write_artifact(Path(folder), model, task, Storage(), skeleton)


def environment() -> dict[str, Any]:
    """Versions and hardware, for reports."""
    import numpy
    import safetensors

    return {
        "versions": {
            "bitstill": _version.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "safetensors": safetensors.__version__,
        },
        "hardware": {
            "machine": platform.machine(),
            "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor())
            if hasattr(torch.cpu, "get_capabilities")
            else platform.processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _head(model: nn.Module, task: Task) -> dict[str, Any]:
    """The objective's record of the head; for a transformers model, its labels and problem type."""
    head, architecture = task.objective.head(), architecture_of(model)
    if "model_type" not in architecture:
        return head if task.objective.label_names or "problem_type" in head else {}
    if task.objective.head_kind == "none":
        return {}
    names: dict[str, Any] = {key: head[key] for key in ("id2label", "label2id") if key in head and task.objective.label_names}
    # The problem type of a model that was trained for another task does not outlive its objective.
    return {**names, **({"problem_type": head.get("problem_type")} if "problem_type" in {*head, *architecture} else {})}


def _check_calls(model: nn.Module) -> None:
    """Refuse compressed layers that were never called though others were: their weights may have been used, and in float.

    Raises:
        SpecError: naming the first of them.
    """
    layers = {name: module for name, module in model.named_modules() if is_compressed(module)}
    silent = [name for name, module in layers.items() if not module.has_run]
    if 0 < len(silent) < len(layers):
        raise SpecError(
            "compressed layers that are all called by the forward",
            given=f"{len(silent)} of {len(layers)} that never were",
            where=f"save, {silent[0]}",
            fix="Call the layer instead of computing with its weight (F.linear(x, layer.weight)), or add it to `ignore`.",
        )


def _check_parity(frozen: nn.Module, reloaded: nn.Module, folder: Path) -> None:
    trained = dict(frozen.named_modules())
    for name, module in reloaded.named_modules():
        if not is_packed(module):
            continue
        expected = trained[name].weight
        unpacked = module.packed()
        assert isinstance(expected, torch.Tensor) and isinstance(unpacked, torch.Tensor)
        transposed = expected.shape != unpacked.shape or module.kind == "TransposedLinear"
        if not torch.equal(expected.T if transposed else expected, unpacked):
            raise ArtifactError(
                "the weights that were trained, bit for bit",
                given="other weights after reloading",
                where=f"{folder}, layer {name}",
                fix="Nothing was delivered. This is a defect of bitstill: please report it.",
            )
