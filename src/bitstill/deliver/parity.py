"""Comparison of an export's outputs with the artifact's, on random inputs or on the artifact's task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitstill.artifact.config_keys import ATTENTION
from bitstill.artifact.reader import Archive
from bitstill.data.task import predict
from bitstill.deliver.architecture import from_architecture
from bitstill.deliver.evaluate import task_of
from bitstill.deliver.load import load
from bitstill.errors import ArtifactError
from bitstill.model.restore import load_into
from bitstill.program.heads import Head, head_of
from bitstill.program.samples import contrasting_inputs, random_inputs

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Array]
"""Runs an exported network: inputs by name to its outputs."""
SAMPLES, LENGTH = 16, 32
"""Random inputs of a comparison: their number in the first batch, and the most tokens of a text there."""
IN_FLOAT = 1e-4
"""Largest accepted difference where no input is quantized, as a fraction of the largest output."""
BATCH = 32
"""Batch size on a task."""


@dataclass(frozen=True)
class Compared:
    """Result of a comparison.

    Args:
        samples: number of inputs.
        inputs: "random", or task and split.
        largest_difference: largest difference of two outputs.
        largest_output: largest absolute output of the artifact.
        tolerance: largest accepted ratio of the former to the latter.
        same_label: fraction of inputs with the same label (of decisions, for multi-label outputs); the first of equal outputs
            counts. None without labels.
        metric: on a task, its name and its values for the artifact and the export.
    """

    samples: int
    inputs: str
    largest_difference: float
    largest_output: float
    tolerance: float
    same_label: float | None
    metric: tuple[str, float, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether outputs match within the tolerance."""
        return self.largest_difference <= self.tolerance * self.largest_output


def without_input_quantization(archive: Archive) -> Archive:
    """The artifact with inputs of layers and operands of attention products in float."""
    layers = {name: replace(layer, input=None) for name, layer in archive.layers.items()}
    learned = {name for name in archive.leftovers if {"input_transform", "attention_transform"} & set(name.split("."))}
    tensors = {name: tensor for name, tensor in archive.tensors.items() if name not in learned}
    return replace(archive, layers=layers, tensors=tensors, config={**archive.config, ATTENTION: {}})


def compare_outputs(
    archive: Archive, run: Run, tolerance: float, *, on_task: bool = False, data: Path | None = None
) -> Compared:
    """Compare the outputs of an export with those of the artifact in torch.

    Args:
        archive: the artifact.
        run: function that runs the export.
        tolerance: largest accepted difference, as a fraction of the largest output.
        on_task: compare on the test split of the artifact's task instead of random inputs.
        data: folder with local files for the task.

    Raises:
        ArtifactError: outputs differ by more than the tolerance.
    """
    model = load(archive.folder)
    return _checked(
        _on_task(archive, model, run, tolerance, data) if on_task else _on_random_inputs(archive, model, run, tolerance),
        archive,
    )


def compare_in_float(archive: Archive, run: Run) -> None:
    """Compare an export of `without_input_quantization(archive)` with that artifact in torch.

    A rounded input hides small differences, of an activation or an epsilon; here they show.

    Raises:
        ArtifactError: outputs differ by more than the last digits of a float.
    """
    plain = without_input_quantization(archive)
    model = load_into(from_architecture(plain.config), plain)
    _checked(_on_random_inputs(plain, model, run, IN_FLOAT), archive)


def _checked(compared: Compared, archive: Archive) -> Compared:
    if not compared.passed:
        fix = "Nothing was written. Please report it with the artifact's config.json; bitstill.load runs it in torch."
        expected = f"outputs that differ by at most {compared.tolerance} of the largest, {compared.largest_output:.4g}"
        given = f"a difference of {compared.largest_difference:.4g}"
        raise ArtifactError(expected, given=given, where=str(archive.folder), fix=fix)
    return compared


def _on_random_inputs(archive: Archive, model: nn.Module, run: Run, tolerance: float) -> Compared:
    """Outputs over all of `contrasting_inputs`; without a head, those of real tokens."""
    ours, theirs = [], []
    for values in contrasting_inputs(archive.config, SAMPLES, LENGTH):
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value) for name, value in values.items()}
            answer = model(**tensors)[0] if "input_ids" in tensors else model(*tensors.values())
        one, other = answer.float().numpy(), run(values)
        if one.ndim == 3 and "attention_mask" in values:
            one, other = (outputs[values["attention_mask"] != 0][:, None] for outputs in (one, other))
        ours.append(one)
        theirs.append(other)
    return _compared(np.concatenate(ours), np.concatenate(theirs), "random", tolerance, head_of(archive.config))


def _on_task(archive: Archive, model: nn.Module, run: Run, tolerance: float, data: Path | None) -> Compared:
    task = task_of(archive.folder, data)
    (only,) = ["input_ids"] if "model_type" in archive.config else list(random_inputs(archive.config, 1, 1))
    artifact_outputs, export_outputs = (predict(network, task, task.test, BATCH) for network in (model, _Exported(run, only)))
    decides = task.objective.decides
    artifact_value, export_value = (
        task.objective.metrics(outputs, task.test.labels)[decides] for outputs in (artifact_outputs, export_outputs)
    )
    return _compared(
        artifact_outputs.numpy(),
        export_outputs.numpy(),
        f"{task.name}, test",
        tolerance,
        head_of(archive.config),
        (decides, artifact_value, export_value),
    )


def _compared(
    expected: Array,
    exported: Array,
    inputs: str,
    tolerance: float,
    head: Head,
    metric: tuple[str, float, float] | None = None,
) -> Compared:
    largest_difference, largest_output = float(np.abs(exported - expected).max()), float(np.abs(expected).max())
    expected_labels, exported_labels = head.decisions(expected), head.decisions(exported)
    same = (
        None
        if expected.ndim != 2 or expected_labels is None or exported_labels is None
        else float((expected_labels == exported_labels).mean())
    )
    return Compared(len(expected), inputs, largest_difference, largest_output, tolerance, same, metric)


class _Exported(nn.Module):
    """An export in the form of a torch module, for evaluation on a task."""

    def __init__(self, run: Run, only: str) -> None:
        super().__init__()
        self.run, self.only = run, only

    def forward(self, *values: Tensor, **named: Tensor) -> Any:
        """Logits for a single positional input; for named inputs, an output like that of transformers."""
        if values:
            return self._logits({self.only: values[0]})
        segments = torch.zeros_like(named["input_ids"])
        return SimpleNamespace(logits=self._logits({"token_type_ids": segments, **named}))

    def _logits(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.from_numpy(self.run({name: value.numpy() for name, value in values.items()}))
