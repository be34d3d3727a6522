"""Actions on the models at the beginning of a stage: compress, copy, shrink, split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bitstill.constraints import Count, FractionBelowOne, WholeNumber, check_fields
from bitstill.data.shuffle import permutation
from bitstill.data.task import Task
from bitstill.errors import MatchError, SpecError, suggest
from bitstill.losses.projection import Projection
from bitstill.losses.taps import Output
from bitstill.model.attention_operands import quantize_attention
from bitstill.model.blocks import reduced
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.copies import copy_model
from bitstill.model.dense_view import DenseView
from bitstill.model.lifecycle import prepare, uncompressed
from bitstill.model.modes import evaluating
from bitstill.model.select import first_and_last_tensor, layers_in_order, norms
from bitstill.model.split_layers import split_model, splittable_layers
from bitstill.model.weight_transform import WeightTransform
from bitstill.model.width import check_fraction, reduce_width
from bitstill.quant.base import CountedLevels
from bitstill.quant.inputs import QuantizeAttention
from bitstill.quant.points import share_points
from bitstill.quant.rules import Compression
from bitstill.rng import derive

Skip = Literal["roles", "paper", "none"]
Importance = Literal["magnitude", "gradient"]


@dataclass(frozen=True)
class Compress:
    """Replace a model's layers by compressed ones.

    Args:
        model: its name.
        compression: the rule, or several rules for different layers.
        skip: layers left in float besides `compression.ignore`: "roles", the stem and the classifier; "paper", those whose
            weight is literally the first or last parameter tensor (the code of Polino et al. 2018); "none".
    """

    model: str
    compression: Compression | tuple[Compression, ...]
    skip: Skip = "none"

    def __post_init__(self) -> None:
        check_fields(self)

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Compress the model in place."""
        model = _named(models, self.model)
        ignore = {
            "roles": ("role:stem", "role:classifier"), "paper": first_and_last_tensor(model), "none": (),
        }[self.skip]  # fmt: skip
        rules = (self.compression,) if isinstance(self.compression, Compression) else self.compression
        prepare(model, [replace(rule, ignore=(*rule.ignore, *ignore)) for rule in rules], run_once=run_once_on(task))


@dataclass(frozen=True)
class CompressAttention:
    """Quantize the operands of a transformer's attention products: `bitstill.model.attention_operands`."""

    model: str
    spec: QuantizeAttention

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Change the model in place."""
        quantize_attention(_named(models, self.model), self.spec, run_once_on(task))


@dataclass(frozen=True)
class Copy:
    """Copy a model in its present state under another name, usually as a teacher for its compressed form."""

    source: str
    name: str

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Add the copy to `models`."""
        models[self.name] = copy_model(_named(models, self.source))


@dataclass(frozen=True)
class ReduceLayers:
    """Build a smaller model from some of another's repeated blocks: `bitstill.model.blocks.reduced`.

    Args:
        source: the model whose blocks are taken; it is not changed.
        name: the new model.
        layers: indices of the blocks to take, ascending, from 0.
    """

    source: str
    name: str
    layers: tuple[WholeNumber, ...]

    def __post_init__(self) -> None:
        check_fields(self)

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Add the smaller model to `models`."""
        models[self.name] = reduced(_named(models, self.source), self.layers)


@dataclass(frozen=True)
class ReduceWidth:
    """Remove whole channels and neurons of a model: `bitstill.model.width.reduce_width`. The classifier keeps its outputs.

    Args:
        model: its name.
        fraction: fraction of each layer's channels to remove.
        multiple: remaining widths are multiples of it.
        importance: "magnitude" removes the channels with the smallest weights, "gradient" those whose removal changes the loss
            on the labels least, to first order and on a part of the training data.
    """

    model: str
    fraction: FractionBelowOne
    multiple: Count = 1
    importance: Importance = "magnitude"

    def __post_init__(self) -> None:
        check_fields(self)
        check_fraction(self.fraction, self.multiple)

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Narrow the model in place."""
        model = _named(models, self.model)
        if self.importance == "magnitude":
            self._reduce(model, task, None)
            return
        names, weights = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
        gradients = _mean_gradients(model, list(weights), task, seed, 16, 32)
        self._reduce(model, task, dict(zip(names, gradients, strict=True)))

    def replay(self, models: dict[str, nn.Module], task: Task) -> None:
        """Shrink the layers without computing importance: widths do not depend on values, and the checkpoint restores these."""
        self._reduce(_named(models, self.model), task, None)

    def _reduce(self, model: nn.Module, task: Task, gradients: dict[str, Tensor] | None) -> None:
        run_once = run_once_on(task)
        last = layers_in_order(model, run_once)[-1]
        reduce_width(model, run_once, self.fraction, keep=(last,), multiple=self.multiple, gradients=gradients)


@dataclass(frozen=True)
class AddDenseView:
    """Add the teacher of PQK: the pruned student together with its spare weights (`bitstill.model.dense_view.DenseView`).

    Args:
        student: a compressed model whose layers prune.
        name: the view.
        own_norms: give the view its own norm layers, with their own statistics.
        own_head: give the view its own classifier.
    """

    student: str
    name: str
    own_norms: bool = True
    own_head: bool = True

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Add the view to `models`."""
        student = _named(models, self.student)
        own = norms(student) if self.own_norms else ()
        if self.own_norms and not own:
            fix = "Share the student's layers: own_norms=False (PQK: teacher_norms=False)."
            raise MatchError("a model with norm layers", given="none", where=f"dense view of {self.student!r}", fix=fix)
        head = (layers_in_order(student, run_once_on(task))[-1],) if self.own_head else ()
        models[self.name] = DenseView(student, uncompressed(student), (*own, *head))


@dataclass(frozen=True)
class AddProjection:
    """Add a learned projection from the student's hidden states to those of a wider or narrower teacher, for `Term.through`.

    Args:
        name: of the projection among the models.
        student, teacher: widths of the hidden states.
    """

    name: str
    student: Count
    teacher: Count

    def __post_init__(self) -> None:
        check_fields(self)

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Add it to `models`, initialized from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "init", self.name))
            models[self.name] = Projection(self.student, self.teacher)


@dataclass(frozen=True)
class Uncompress:
    """Undo `Compress`: the original layers return, with the latent weights as their weights."""

    model: str

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Put the original layers back."""
        models[self.model] = uncompressed(_named(models, self.model))


@dataclass(frozen=True)
class SplitTernary:
    """Turn a ternary model into a binary one that computes the same: `model.split_layers.split_model` (Bai et al. 2021).

    Args:
        model: its name.
        optional: whether a model without ternary layers stays as it is, as where a budget left none; else that is an error.
    """

    model: str
    optional: bool = False

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Split it in place."""
        model = _named(models, self.model)
        if not self.optional or splittable_layers(model):
            split_model(model)


@dataclass(frozen=True)
class SetDropout:
    """Give every dropout layer of a model the same probability."""

    model: str
    probability: FractionBelowOne

    def __post_init__(self) -> None:
        check_fields(self)

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Set it."""
        for module in _named(models, self.model).modules():
            if isinstance(module, nn.Dropout):
                module.p = self.probability
            for name, value in vars(module).items():  # some attention layers hold their probability as a plain number
                if name.endswith("dropout") and isinstance(value, float):
                    setattr(module, name, self.probability)


@dataclass(frozen=True)
class SharePoints:
    """Redistribute learned points by gradient: `quant.points.share_points` (Polino et al. 2018, section 4.2).

    The norms are of the gradient of the mean loss on the labels over `batches` batches, at the quantized weights.

    Args:
        model: its name; its layers have `Points`.
        batches: number of batches to average over.
        batch_size: samples in each.
    """

    model: str
    batches: Count = 5
    batch_size: Count = 128

    def __post_init__(self) -> None:
        check_fields(self)

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Give each layer its new number of points, initialized anew."""
        model = _named(models, self.model)
        layers = [m for m in model.modules() if is_compressed(m) and _counted(m) is not None]
        if not layers:
            raise SpecError(
                "a model with learned points",
                given="none",
                where=f"SharePoints({self.model!r})",
                fix="Compress it with Points first.",
            )
        weights = [layer.weight for layer in layers]
        norms = [float(g.norm()) for g in _mean_gradients(model, weights, task, seed, self.batches, self.batch_size)]  # type: ignore[arg-type]
        counted = [(layer, pair) for layer in layers if (pair := _counted(layer)) is not None]
        counts = [quantizer.count_of(transform.state) for _, (transform, quantizer) in counted]
        for (layer, (transform, quantizer)), count in zip(counted, share_points(counts, norms), strict=True):
            assert isinstance(layer.weight, Tensor)
            transform.set_quantizer(quantizer, quantizer.with_count(layer.weight.detach(), transform.mask, count))

    def replay(self, models: dict[str, nn.Module], task: Task) -> None:
        """Do nothing: the checkpoint restores the right number of points."""


def run_once_on(task: Task) -> Callable[[nn.Module], object]:
    """Function that runs a model on a small batch of the task."""

    def run(model: nn.Module) -> object:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        return task.forward(model, {name: tensor.to(device) for name, tensor in task.sample().items()})

    return run


def _mean_gradients(
    model: nn.Module, weights: list[Tensor], task: Task, seed: int, batches: int, batch_size: int
) -> list[Tensor]:
    order = permutation(len(task.train), seed, "share points")
    device = weights[0].device
    total = [torch.zeros_like(weight) for weight in weights]
    label_loss = task.objective.label_loss()
    if label_loss is None:
        given, fix = type(task.objective).__name__, "Set share_points=False."
        raise SpecError("a task with labels to share out points", given=given, where=task.name, fix=fix)
    with evaluating(model):
        for index in range(batches):
            start = index * batch_size % max(1, len(order) - batch_size + 1)
            batch = {k: v.to(device) for k, v in task.train.take(order[start : start + batch_size]).items()}
            loss = label_loss(Output(task.outputs(model, batch)), None, batch["labels"], 0.0)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, gradients, strict=True)]
    return total


def _counted(layer: nn.Module) -> tuple[WeightTransform, CountedLevels] | None:
    """The weight transform of a compressed layer and its quantizer, if that can change its number of levels."""
    transform = layer.weight_transform
    if isinstance(transform, WeightTransform) and isinstance(transform.quantizer, CountedLevels):
        return transform, transform.quantizer
    return None


def _named(models: dict[str, nn.Module], name: str) -> nn.Module:
    if name not in models:
        raise SpecError("a known model", given=repr(name), where="an action of a stage", fix=suggest(name, models))
    return models[name]
