"""Rows of the demonstrations by recipe, in the order of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bitstill.quant.rules import Prune
from bitstill.recipes import PQK, DifferentiableQuantization, PostTraining, QuantizedDistillation, Recipe


@dataclass(frozen=True)
class Plan:
    """One row of a demonstration.

    Args:
        folder: its folder below that of the demonstration.
        name, method, bits: its entries in the table.
        recipe: recipe of the run.
        models: models by role: names, or folders of earlier rows.
    """

    folder: str
    name: str
    method: str
    bits: str
    recipe: Recipe
    models: dict[str, str]


@dataclass(frozen=True)
class Demonstration:
    """A comparison of several runs.

    Args:
        title: title of its page.
        epochs: default epochs of each student.
        plans: function from epochs to the rows.
    """

    title: str
    epochs: float
    plans: Callable[[float], tuple[Plan, ...]]


def quantized_distillation(epochs: float) -> tuple[Plan, ...]:
    """A float teacher and student; then 4, 2 and 1 bits without training, by distillation, and with learned points."""
    supervised = QuantizedDistillation(bits=None, kd_weight=0, epochs=epochs)
    distilled = QuantizedDistillation(bits=None, epochs=epochs)
    fresh = {"teacher": "teacher", "student": "digits-student"}
    alone = {"student": "student-float"}
    trained = {"teacher": "teacher", "student": "student-float"}
    learned = DifferentiableQuantization(epochs=epochs, float_epochs=0, skip="none")
    return (
        Plan("teacher", "teacher", "float", "32", supervised, {"student": "digits-teacher"}),
        Plan("student-float", "student, distilled", "float", "32", distilled, fresh),
        *(_plan("post-training", bits, PostTraining(bits=bits, skip="none"), alone) for bits in (4, 2, 1)),
        *(
            _plan("quantized distillation", bits, QuantizedDistillation(bits=bits, epochs=epochs, skip="none"), fresh)
            for bits in (4, 2, 1)
        ),
        *(_plan("differentiable", bits, replace(learned, bits=bits), trained) for bits in (4, 2)),
    )


def pqk(epochs: float) -> tuple[Plan, ...]:
    """A float network; then pruned and quantized without training, by phase 1 alone, and by both phases in equal time."""
    warm, second = 0.04 * epochs, 0.16 * epochs
    fresh, trained = {"student": "digits-student"}, {"student": "float"}
    plans = [Plan("float", "float", "float", "32", QuantizedDistillation(bits=None, kd_weight=0, epochs=epochs), fresh)]
    for bits, sparsity in ((4, 0.5), (4, 0.8), (4, 0.9), (2, 0.8)):
        alone = PQK(bits=bits, sparsity=sparsity, epochs=epochs, warmup_epochs=0, mutual_epochs=0)
        both = replace(alone, epochs=epochs - warm - second, warmup_epochs=warm, mutual_epochs=second)
        after = PostTraining(bits=bits, prune=Prune(sparsity, scope="global"))
        for method, recipe, models in (
            ("post-training", after, trained), ("phase 1 alone", alone, fresh), ("PQK", both, fresh),
        ):  # fmt: skip
            folder = f"{method.replace(' ', '-').lower()}-{bits}-{round(100 * sparsity)}"
            plans.append(Plan(folder, f"{method}, {bits} bits, {sparsity:.0%} zeros", method, str(bits), recipe, models))
    return tuple(plans)


DEMONSTRATIONS = {
    "pqk": Demonstration("bitstill on handwritten digits: PQK", 40, pqk),
    "quantized-distillation": Demonstration("bitstill on handwritten digits", 60, quantized_distillation),
}


def _plan(method: str, bits: int, recipe: Recipe, models: dict[str, str]) -> Plan:
    folder = f"{method.replace(' ', '-')}-{bits}"
    return Plan(folder, f"{method}, {bits} bit{'s' if bits > 1 else ''}", method, str(bits), recipe, models)
