"""A task: data in three splits, how a model reads a batch, and the objective.

Splits are held in memory as tensors. Everything random is a function of the sample's index and a key, so that any batch can
be made again at any time, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bitstill.constraints import WholeNumber
from bitstill.data.objective import Objective, WeighsClasses
from bitstill.errors import BitstillError, DataError, SpecError
from bitstill.model.modes import evaluating

Batch = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], Any]
"""Runs a model on a batch; the objective reads what counts of its output."""
Augment = Callable[[Batch, Tensor], Batch]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data.

    Args:
        inputs: tensors with one row per sample, by name.
        labels: one row per sample, of the kind that the task's objective reads: int64 (samples,) classes, float (samples,)
            values.
        lengths: for padded sequences, int64 (samples,): how many positions of dimension 1 each sample uses. A batch is then cut
            to its longest sample, and batches are made of samples of similar length.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.inputs.items()}
        if len(self.labels) == 0 or set(lengths.values()) != {len(self.labels)}:
            raise DataError(
                "at least one sample, and as many inputs as labels",
                given=f"{len(self.labels)} labels, inputs {lengths}",
                where="data",
                fix="Check the files and the split's name.",
            )
        for name, tensor in (*self.inputs.items(), ("labels", self.labels)):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError("finite data", given="NaN or infinity", where=f"data: {name}", fix="Clean the data first.")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Batch:
        """The samples `indices` (int64) as a batch; `index` keeps where they came from."""
        longest = None if self.lengths is None else int(self.lengths[indices].max())
        inputs = {name: t[indices] if t.ndim < 2 else t[indices, :longest] for name, t in self.inputs.items()}
        return {**inputs, "labels": self.labels[indices], "index": indices}

    def batches(self, size: int) -> Iterator[Tensor]:
        """Indices of all samples in batches of at most `size`, those of similar length together; always the same ones."""
        order = torch.arange(len(self)) if self.lengths is None else self.lengths.argsort(stable=True)
        yield from order.split(size)

    def digest(self) -> str:
        """A short hash of every byte, by which a checkpoint knows its data."""
        state = hashlib.blake2b(digest_size=8)
        lengths = () if self.lengths is None else (self.lengths,)
        for tensor in (*self.inputs.values(), self.labels, *lengths):
            state.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            state.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return state.hexdigest()


class Preprocessor(Protocol):
    """What turned raw data into a task's inputs, such as a tokenizer; an artifact carries it."""

    def save(self, folder: Path) -> None:
        """Write its files into `folder`."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned.

    Args:
        name: for reports.
        train: what models learn from.
        validation: held out of train, for curves and choices.
        test: reported, and used for nothing else.
        objective: what is asked of a model: its losses and metrics, and what the labels mean.
        forward: runs a model on a batch.
        augment: changes a training batch, given uniform numbers (batch, draws); None leaves it alone.
        draws: how many uniform numbers per sample `augment` wants.
        preprocessor: what made the inputs, or None.
        options: how the data were read, as plain values, so that `evaluate` can read them again.
        origin: by part, the files that were read, their rows, and how many were dropped as empty, as plain values for reports.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    objective: Objective
    forward: Forward
    augment: Augment | None = None
    draws: WholeNumber = 0
    preprocessor: Preprocessor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            self.objective.check_labels(split.labels, f"{self.name}, {name} split")

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What counts of the model's output for a batch."""
        return self.objective.read(self.forward(model, batch), batch)

    def sample(self, count: int = 2) -> Batch:
        """The first few training samples: enough to run a model once."""
        return self.train.take(torch.arange(min(count, len(self.train))))

    def check_model(self, model: nn.Module, name: str) -> None:
        """Run `model` on a sample and compare the width of its output with the objective's.

        Raises:
            DataError: if it cannot read the task's inputs, or returns outputs of another width.
        """
        try:
            with evaluating(model), torch.no_grad():
                outputs = self.outputs(model, self.sample())
        except BitstillError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError) as error:
            shapes = ", ".join(f"{key} {tuple(tensor.shape[1:])}" for key, tensor in self.train.inputs.items())
            raise DataError(
                f"a model that reads {self.name} ({shapes})", given=str(error), where=name, fix="Choose a model for this task."
            ) from error
        width = 1 if outputs.ndim == 1 else outputs.shape[-1]
        if self.objective.width not in (None, width):
            raise DataError(
                f"{self.objective.summary}, as {self.name} has",
                given=f"{width} outputs",
                where=name,
                fix="Teacher and student must both have as many outputs as the task's objective asks for.",
            )


def with_class_weights(task: Task, weights: Literal["balanced"] | tuple[float, ...]) -> Task:
    """The task with weights for the classes in its loss on labels.

    Args:
        task: of an objective with classes.
        weights: one per class, in their order; "balanced" takes them from the training labels, so that rare classes count as
            much as frequent ones.

    Raises:
        SpecError: the objective has no classes, or another number of them.
    """
    if not isinstance(task.objective, WeighsClasses):
        given, fix = type(task.objective).__name__, "Leave class_weights out."
        raise SpecError("an objective with classes", given=given, where="class_weights", fix=fix)
    values = task.objective.balanced_weights(task.train.labels) if weights == "balanced" else tuple(weights)
    return replace(task, objective=task.objective.with_class_weights(values))


def assess(model: nn.Module, task: Task, split: Split) -> dict[str, Any]:
    """What a report says of a model on a split: every metric, that of the best constant answer too, and details."""
    outputs, objective = predict(model, task, split), task.objective
    metrics = objective.metrics(outputs, split.labels)
    return {
        "metric": objective.decides,
        "test": metrics[objective.decides],
        "samples": len(split),
        "metrics": metrics,
        "baseline": baseline(task, split),
        "details": {title: table.to_json() for title, table in objective.report(outputs, split.labels).items()},
    }


def evaluate(model: nn.Module, task: Task, split: Split, batch_size: int = 500) -> float:
    """The metric that decides over a whole split. The model is used as it is: hand in a delivered form, not a latent one."""
    return task.objective.metrics(predict(model, task, split, batch_size), split.labels)[task.objective.decides]


def baseline(task: Task, split: Split) -> dict[str, float]:
    """Metrics of the best constant answer, as the training labels tell it, over a whole split."""
    constant = task.objective.constant_output(task.train.labels)
    return task.objective.metrics(constant.expand(len(split), *constant.shape), split.labels)


def predict(model: nn.Module, task: Task, split: Split, batch_size: int = 500) -> Tensor:
    """Outputs of a whole split, in order, float32 on the CPU."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    orders, parts = [], []
    with evaluating(model), torch.inference_mode():
        for indices in split.batches(batch_size):
            outputs = task.outputs(model, {name: tensor.to(device) for name, tensor in split.take(indices).items()})
            orders.append(indices)
            parts.append(outputs.float().cpu())
    return torch.cat(parts)[torch.cat(orders).argsort()]
