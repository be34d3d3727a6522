"""Adaptive splitting (Bai et al. 2021, section 3.3): choose, within a budget, which ternary matrices get two binary planes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitstill.constraints import Count, check_fields
from bitstill.data.shuffle import permutation
from bitstill.data.task import Task
from bitstill.errors import SpecError, TrainingError
from bitstill.model.modes import evaluating
from bitstill.model.split_layers import splittable_layers
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant.base import Splittable
from bitstill.quant.granularity import grid_of
from bitstill.train.knapsack import knapsack
from bitstill.train.stage import Stage, Term
from bitstill.train.step import TrainingStep
from bitstill.train.teachers import Teachers


@dataclass(frozen=True)
class ChooseTernary:
    """Keep the matrices ternary that gain most per byte when they are split; the others become binary with one plane.

    The gain of a matrix is the increase of the loss, on a part of the training data, when it alone becomes binary and the
    others stay ternary. The choice is a 0/1 knapsack over gains and bytes. It is made before the ternary form trains, so that
    every matrix trains in the form that it keeps until the ternary ones are split.

    Args:
        model: its name.
        budget: most bytes for the codes and scales of its ternary matrices once they are binary.
        terms: the loss; `model` is its student.
        batches: number of batches to average over.
        batch_size: samples in each.
    """

    model: str
    budget: Count
    terms: tuple[Term, ...]
    batches: Count = 4
    batch_size: Count = 32

    def __post_init__(self) -> None:
        check_fields(self)

    def apply(self, models: dict[str, nn.Module], task: Task, seed: int) -> None:
        """Decide, and change the model in place."""
        self.repeat(models, self.decide(models, task, seed))

    def replay(self, models: dict[str, nn.Module], task: Task) -> None:
        """Keep whatever fits, in the order of the model: about the bytes to be delivered, whatever the gains will be."""
        model = models[self.model]
        left = self.budget - self._smallest(model)
        chosen: list[str] = []
        for names in _units(model):
            cost = _plane_bytes(*splittable_layers(model)[names[0]])
            if cost <= left:
                left -= cost
                chosen += names
        _keep_ternary(model, chosen)

    def decide(self, models: dict[str, nn.Module], task: Task, seed: int) -> Any:
        """Names of the layers to keep ternary, and the gain and cost of every candidate.

        Raises:
            SpecError: the matrices exceed the budget even with one plane each.
        """
        model = models[self.model]
        units = _units(model)
        spare = self.budget - self._smallest(model)
        base = self._loss(models, task, seed)
        gains, costs = [], []
        for names in units:
            transforms = [splittable_layers(model)[name][1] for name in names]
            quantizers = [transform.quantizer for transform in transforms]
            for transform in transforms:
                assert isinstance(transform.quantizer, Splittable)
                transform.quantizer = transform.quantizer.one_plane()
            gains.append(self._loss(models, task, seed) - base)
            for transform, quantizer in zip(transforms, quantizers, strict=True):
                transform.quantizer = quantizer
            costs.append(_plane_bytes(*splittable_layers(model)[names[0]]))
        if not all(math.isfinite(gain) for gain in gains):
            fix = "Lower the learning rate of the stage before, or set clip_norm."
            raise TrainingError("a finite loss", given="NaN or infinity", where="splitting within a budget", fix=fix)
        chosen = knapsack(gains, costs, spare)
        table = {unit[0]: {"gain": gain, "bytes": cost} for unit, gain, cost in zip(units, gains, costs, strict=True)}
        return {"ternary": [name for index in chosen for name in units[index]], "units": table}

    def repeat(self, models: dict[str, nn.Module], decision: Any) -> None:
        """Make all layers binary but those that were decided on."""
        _keep_ternary(models[self.model], decision["ternary"])

    def _smallest(self, model: nn.Module) -> int:
        layers = splittable_layers(model)
        smallest = sum(_plane_bytes(*layers[names[0]]) for names in _units(model))
        if smallest > self.budget:
            given = f"{self.budget:,} bytes"
            fix = f"{2 * smallest:,} bytes split everything; or make the student narrower or shallower."
            wanted = f"a budget of at least {smallest:,} bytes, one bit for each weight"
            raise SpecError(wanted, given=given, where="splitting within a budget", fix=fix)
        return smallest

    def _loss(self, models: dict[str, nn.Module], task: Task, seed: int) -> float:
        stage = Stage("sensitivity", train=(self.model,), terms=self.terms, steps=1, augment=False)
        device = next(models[self.model].parameters()).device
        teachers = Teachers(stage, models, task, device, False)
        step = TrainingStep(stage, models, task)
        order = permutation(len(task.train), seed, "sensitivity")
        total = 0.0
        with evaluating(models[self.model]), torch.no_grad():
            step.eval()
            for index in range(self.batches):
                start = index * self.batch_size % max(1, len(order) - self.batch_size + 1)
                batch = {k: v.to(device) for k, v in task.train.take(order[start : start + self.batch_size]).items()}
                total += float(step(batch, teachers(batch), 0.0, False)[0])
        return total / self.batches


def _keep_ternary(model: nn.Module, chosen: Collection[str]) -> None:
    for name, (_, transform) in splittable_layers(model).items():
        if name not in chosen:
            assert isinstance(transform.quantizer, Splittable)
            transform.set_quantizer(transform.quantizer.one_plane(), {})


def _units(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of the ternary layers, grouped by shared weight."""
    units: dict[int, list[str]] = {}
    for name, (layer, _) in splittable_layers(model).items():
        units.setdefault(id(layer.weight), []).append(name)
    return [tuple(names) for names in units.values()]


def _plane_bytes(layer: nn.Module, transform: WeightTransform) -> int:
    """Stored bytes of one binary plane: codes and scales."""
    assert isinstance(layer.weight, torch.Tensor)
    shape = layer.weight.shape
    flip = type(layer).__name__ == "CompressedTransposedLinear"
    grid = grid_of(shape[::-1] if flip else shape, transform.quantizer.granularity)
    scale = 2 if transform.quantizer.scale_dtype == "float16" else 4
    return grid.rows * -(-grid.length // 8) + grid.rows * grid.groups * scale
