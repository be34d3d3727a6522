"""A task: data in three splits, a forward function, and the objective.

Splits are held in memory as tensors. All randomness is a function of the sample's index and a key, so that any batch can be
reproduced at any time, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bitstill.constraints import WholeNumber
from bitstill.data.objective import Objective, WeighsClasses
from bitstill.errors import BitstillError, DataError, SpecError
from bitstill.model.modes import evaluating

Batch = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], Any]
"""Function that runs a model on a batch; the objective reads its output."""
Augment = Callable[[Batch, Tensor], Batch]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data.

    Args:
        inputs: tensors with one row per sample, by name.
        labels: one row per sample, as the task's objective requires: int64 (samples,) classes, float (samples,) values.
        lengths: lengths of padded sequences along dimension 1, int64 (samples,). A batch is then cut to its longest sample, and
            samples of similar length are batched together.
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
        """The samples `indices` (int64) as a batch; its key "index" holds them."""
        longest = None if self.lengths is None else int(self.lengths[indices].max())
        inputs = {name: t[indices] if t.ndim < 2 else t[indices, :longest] for name, t in self.inputs.items()}
        return {**inputs, "labels": self.labels[indices], "index": indices}

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the indices of all samples in fixed batches of at most `size`, those of similar length together."""
        order = torch.arange(len(self)) if self.lengths is None else self.lengths.argsort(stable=True)
        yield from order.split(size)

    def digest(self) -> str:
        """A short hash of every byte, by which a checkpoint identifies its data."""
        state = hashlib.blake2b(digest_size=8)
        lengths = () if self.lengths is None else (self.lengths,)
        for tensor in (*self.inputs.values(), self.labels, *lengths):
            state.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            state.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return state.hexdigest()


Texts = tuple[Sequence[str], ...]
"""Some texts: one sequence per column, so two for pairs."""


class Preprocessor(Protocol):
    """Conversion of raw data into a task's inputs, such as a tokenizer; it becomes part of the artifact."""

    def save(self, folder: Path) -> None:
        """Write its files into `folder`."""


@runtime_checkable
class TextPreprocessor(Preprocessor, Protocol):
    """A tokenizer of transformers, with some of the task's texts, on which others are compared with it."""

    tokenizer: Any
    texts: Texts


@dataclass(frozen=True, eq=False)
class Task:
    """Data in three splits and an objective.

    Args:
        name: name in reports.
        train: training split.
        validation: split for curves and for selecting weights, held out of train.
        test: split of the reported metrics, used for nothing else.
        objective: losses, metrics, and meaning of the labels.
        forward: function that runs a model on a batch.
        augment: function that augments a training batch, given uniform numbers (batch, draws); None does not augment.
        draws: number of uniform numbers per sample for `augment`.
        preprocessor: conversion of raw data into the inputs, or None.
        options: options of loading as plain values, from which `evaluate` loads the task again.
        origin: files read, their rows, and numbers of empty rows dropped, by part, as plain values for reports.
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
        """Run a model on a batch and extract the relevant part of its output."""
        return self.objective.read(self.forward(model, batch), batch)

    def sample(self, count: int = 2) -> Batch:
        """A batch of the first few training samples."""
        return self.train.take(torch.arange(min(count, len(self.train))))

    def check_model(self, model: nn.Module, name: str) -> None:
        """Check that `model` accepts the task's inputs and has the objective's number of outputs.

        Raises:
            DataError: it does not.
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
                fix="Teacher and student must both have the number of outputs of the task's objective.",
            )


def with_class_weights(task: Task, weights: Literal["balanced"] | tuple[float, ...]) -> Task:
    """Set class weights in the loss on labels.

    Args:
        task: a task whose objective has classes.
        weights: one per class, in order; "balanced" computes them from the training labels, so that rare classes weigh as much
            as frequent ones.

    Raises:
        SpecError: the objective has no classes, or a different number.
    """
    if not isinstance(task.objective, WeighsClasses):
        given, fix = type(task.objective).__name__, "Leave class_weights out."
        raise SpecError("an objective with classes", given=given, where="class_weights", fix=fix)
    values = task.objective.balanced_weights(task.train.labels) if weights == "balanced" else tuple(weights)
    return replace(task, objective=task.objective.with_class_weights(values))


def assess(model: nn.Module, task: Task, split: Split) -> dict[str, Any]:
    """Evaluate a model on a split for a report: all metrics, those of the best constant answer, and details."""
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
    """Deciding metric on a whole split. The model is used as given: pass the delivered form, not latent weights."""
    return task.objective.metrics(predict(model, task, split, batch_size), split.labels)[task.objective.decides]


def baseline(task: Task, split: Split) -> dict[str, float]:
    """Metrics on a whole split of the best constant answer, estimated from the training labels."""
    constant = task.objective.constant_output(task.train.labels)
    return task.objective.metrics(constant.expand(len(split), *constant.shape), split.labels)


def predict(model: nn.Module, task: Task, split: Split, batch_size: int = 500) -> Tensor:
    """Outputs for a whole split, in order, float32 on the CPU."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    orders, parts = [], []
    with evaluating(model), torch.inference_mode():
        for indices in split.batches(batch_size):
            outputs = task.outputs(model, {name: tensor.to(device) for name, tensor in split.take(indices).items()})
            orders.append(indices)
            parts.append(outputs.float().cpu())
    return torch.cat(parts)[torch.cat(orders).argsort()]
