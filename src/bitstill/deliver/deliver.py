"""From a trained model to a folder that has been read back: freeze, pack, write, reload, check, evaluate, report.

Only what was reloaded from disk is evaluated. Between writing and reporting, the reloaded model's effective weights are
compared with the frozen model's, bit for bit; a difference is a defect, and nothing is delivered.
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
from bitstill.deliver.architecture import architecture_of, can_rebuild, from_architecture
from bitstill.errors import ArtifactError
from bitstill.model.contents import contents_of
from bitstill.model.copies import copy_model
from bitstill.model.lifecycle import freeze, uncompressed
from bitstill.model.packed_layers import is_packed
from bitstill.model.restore import load_into
from bitstill.model.wrappers import unwrapped


@dataclass(frozen=True)
class Delivered:
    """A reloaded artifact with what is known about it."""

    model: nn.Module
    size: SizeReport
    assessment: dict[str, Any]

    @property
    def metric(self) -> float:
        """The metric that decides, on the test split."""
        return float(self.assessment["test"])


def write_artifact(
    folder: Path, model: nn.Module, task: Task, storage: Storage, skeleton: nn.Module | None = None
) -> Delivered:
    """Deliver `model` into the existing `folder`, reload it from there, check it and evaluate it on the test split.

    Args:
        folder: an empty folder.
        model: prepared or float.
        task: whose test split decides.
        storage: how leftovers and codes are stored.
        skeleton: a float network of the same architecture, where it is not one of bitstill's own.

    Raises:
        ArtifactError: if what was read back differs from what was written, or is larger than its arithmetic.
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
        model: prepared or float; it stays as it is.
        storage: how leftovers and codes are stored.
        about: what else `config.json` says.
        skeleton: a float network of the same architecture, used where `config.json` cannot say how to build one; None takes
            the layers that `model` had before it was prepared.

    Returns:
        The reloaded network, and its size.

    Raises:
        ArtifactError: if what was read back differs from what was written, or is larger than its arithmetic.
    """
    model = unwrapped(model, "save")
    frozen = freeze(model, storage.leftovers).cpu()
    architecture = architecture_of(model)
    write(folder, contents_of(frozen), {**architecture, **about}, storage)
    archive = read(folder)
    # Where a file says how to build its network, that is how it will be loaded, and so how it is checked.
    if can_rebuild(architecture):
        blank = from_architecture(archive.config)
    else:
        blank = uncompressed(model) if skeleton is None else copy_model(skeleton)
    reloaded = load_into(blank, archive)
    _check_parity(frozen, reloaded, folder)
    size = size_report(archive)
    check_size(size, folder)
    return reloaded, size


def save(model: nn.Module, folder: str | Path, *, storage: Storage | None = None, tokenizer: Any = None) -> SizeReport:
    """Deliver a network that was prepared and trained elsewhere: freeze, pack, write, read back, check every weight.

    Args:
        model: from `prepare`; it stays as it is and can train on.
        folder: where the artifact goes; an older one there is replaced in one step.
        storage: how leftovers and codes are stored.
        tokenizer: of transformers, to be kept beside the model.

    Returns:
        Where its bytes went.

    Raises:
        ArtifactError: the place cannot be written, or holds something else.
    """
    with replaced_folder(Path(folder)) as beside:
        _, size = write_network(beside, model, storage or Storage())
        if tokenizer is not None:
            tokenizer.save_pretrained(str(beside))
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
) -> tuple[Delivered, dict[str, Any]]:
    """Write the whole artifact to `target`, which changes only when everything has succeeded.

    Args:
        target: the folder; an older artifact there is replaced in one step.
        model, task, storage, skeleton: as `write_artifact`.
        report: what is known about the run; size and metric are added.
        recipe_yaml: the resolved recipe.

    Returns:
        The reloaded artifact, and the complete report.
    """
    from bitstill.report.page import artifact_page

    with replaced_folder(target) as folder:
        delivered = write_artifact(folder, model, task, storage, skeleton)
        complete = {
            **report,
            "delivered": delivered.assessment,
            "size": to_json(delivered.size),
        }
        write_file(folder / RECIPE, recipe_yaml.encode())
        renew_digests(folder)
        write_file(folder / REPORT, json.dumps(complete, indent=1, sort_keys=True).encode())
        write_file(folder / CARD, model_card(complete, target.name).encode())
        write_file(folder / "report.html", artifact_page(complete, model).encode())
    return delivered, complete


def measure(model: nn.Module, task: Task, skeleton: nn.Module | None = None) -> Delivered:
    """Deliver `model` to a temporary folder, reload it and evaluate it: how a teacher's row in a table is made."""
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
    """What the objective says of the outputs, where the network's own config does not say it."""
    head = task.objective.head()
    says_nothing = not task.objective.label_names and "problem_type" not in head
    return {} if says_nothing or "model_type" in architecture_of(model) else head


def _check_parity(frozen: nn.Module, reloaded: nn.Module, folder: Path) -> None:
    trained = dict(frozen.named_modules())
    for name, module in reloaded.named_modules():
        if not is_packed(module):
            continue
        wanted = trained[name].weight
        found = module.packed()
        assert isinstance(wanted, torch.Tensor) and isinstance(found, torch.Tensor)
        transposed = wanted.shape != found.shape or module.kind == "TransposedLinear"
        if not torch.equal(wanted.T if transposed else wanted, found):
            raise ArtifactError(
                "the weights that were trained, bit for bit",
                given="other weights after reloading",
                where=f"{folder}, layer {name}",
                fix="Nothing was delivered. This is a defect of bitstill: please report it.",
            )
