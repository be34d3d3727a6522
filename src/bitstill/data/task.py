"""A task: data in three splits, how a model reads a batch, and the metric that decides.

Splits are held in memory as tensors. Everything random is a function of the sample's index and a key, so that any batch can
be made again at any time, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitstill.errors import BitstillError, DataError
from bitstill.losses.taps import as_logits
from bitstill.model.modes import evaluating

Batch = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], Tensor]
Augment = Callable[[Batch, Tensor], Batch]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data.

    Args:
        inputs: tensors with one row per sample, by name.
        labels: int64 (samples,) classes, or float (samples,) values.
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
        classes: number of classes; None for regression.
        forward: runs a model on a batch and returns logits.
        augment: changes a training batch, given uniform numbers (batch, draws); None leaves it alone.
        draws: how many uniform numbers per sample `augment` wants.
        metric_name: "accuracy" or whatever `metric` computes.
        metric: (logits, labels) of a whole split -> a number, larger is better.
        preprocessor: what made the inputs, or None.
        label_names: names of the classes in order; empty where there are none.
        options: how the data were read, as plain values, so that `evaluate` can read them again.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int | None
    forward: Forward
    augment: Augment | None = None
    draws: int = 0
    metric_name: str = "accuracy"
    metric: Callable[[Tensor, Tensor], float] = lambda logits, labels: accuracy(logits, labels)
    preprocessor: Preprocessor | None = None
    label_names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.classes is None:
            return
        for name, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            labels = split.labels
            if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) >= self.classes:
                raise DataError(
                    f"int64 labels from 0 to {self.classes - 1}",
                    given=f"{str(labels.dtype).removeprefix('torch.')} from {labels.min().item()} to {labels.max().item()}",
                    where=f"{self.name}, {name} split",
                    fix="Correct the labels or `classes`; classes=None is regression.",
                )

    def sample(self, count: int = 2) -> Batch:
        """The first few training samples: enough to run a model once."""
        return self.train.take(torch.arange(min(count, len(self.train))))

    def check_model(self, model: nn.Module, name: str) -> None:
        """Run `model` on a sample and compare its output with the classes.

        Raises:
            DataError: if it cannot read the task's inputs, or returns logits of another width than the task has classes.
        """
        try:
            with evaluating(model), torch.no_grad():
                logits = as_logits(self.forward(model, self.sample()))
        except BitstillError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError) as error:
            shapes = ", ".join(f"{key} {tuple(tensor.shape[1:])}" for key, tensor in self.train.inputs.items())
            raise DataError(
                f"a model that reads {self.name} ({shapes})", given=str(error), where=name, fix="Choose a model for this task."
            ) from error
        width = 1 if logits.ndim == 1 else logits.shape[-1]
        if width != (self.classes or 1):
            raise DataError(
                f"{self.classes} classes, as {self.name} has" if self.classes else f"one value, as {self.name} has",
                given=f"{width} outputs",
                where=name,
                fix="Teacher and student must both have one output per class of the task, or one for regression.",
            )


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percentage of samples whose largest logit is the label's."""
    return 100.0 * int((logits.argmax(-1) == labels).sum()) / len(labels)


def evaluate(model: nn.Module, task: Task, split: Split, batch_size: int = 500) -> float:
    """The task's metric over a whole split. The model is used as it is: hand in a delivered form, not a latent one."""
    return task.metric(predict(model, task, split, batch_size), split.labels)


def predict(model: nn.Module, task: Task, split: Split, batch_size: int = 500) -> Tensor:
    """Logits of a whole split, in order, float32 on the CPU."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    orders, parts = [], []
    with evaluating(model), torch.inference_mode():
        for indices in split.batches(batch_size):
            logits = as_logits(task.forward(model, {name: tensor.to(device) for name, tensor in split.take(indices).items()}))
            orders.append(indices)
            parts.append(logits.float().cpu())
    return torch.cat(parts)[torch.cat(orders).argsort()]
