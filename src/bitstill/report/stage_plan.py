"""Plans of stages in words: changes to the models, teachers and students, data, duration. Drawn as text and as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitstill.decode import decode
from bitstill.quant.rules import Compression
from bitstill.schedules import Constant, at
from bitstill.train import actions
from bitstill.train.adaptive import ChooseTernary
from bitstill.train.pruning import Pruning
from bitstill.train.stage import Stage, Term, source_name

DATA = {"task": "the task", "corpus": "plain text", "variants": "the task and variants of its texts"}
LOSSES = {
    "AttentionRelation": "attention relations",
    "AttentionScoreMSE": "attention scores",
    "AttentionTransfer": "attention maps",
    "BinaryCrossEntropy": "cross-entropy",
    "BinaryKL": "KL",
    "CrossEntropy": "cross-entropy",
    "FeatureMSE": "hidden states",
    "MeanSquaredError": "squared error",
    "SoftBinaryCrossEntropy": "soft cross-entropy",
    "SoftCrossEntropy": "soft cross-entropy",
}
"""Losses in words; others are shown by class name."""


@dataclass(frozen=True)
class Arrow:
    """Losses between a teacher, or the labels, and a student.

    Args:
        teacher: a model's name, or "labels".
        student: the model being trained.
        losses: losses in words, with their weights unless 1.
    """

    teacher: str
    student: str
    losses: tuple[str, ...]


@dataclass(frozen=True)
class StagePlan:
    """A stage in words.

    Args:
        name: name of the stage.
        duration: such as "30 epochs"; "" where nothing is trained.
        data: training data; "" where nothing is trained.
        begin: changes to the models before training, one line each.
        arrows: losses between teachers and students.
    """

    name: str
    duration: str
    data: str
    begin: tuple[str, ...]
    arrows: tuple[Arrow, ...]

    @property
    def heading(self) -> str:
        """Duration and data in one line."""
        return f"{self.duration} on {self.data}" if self.duration else "no training"


def stage_plans(stages: Sequence[Stage]) -> tuple[StagePlan, ...]:
    """Describe every stage in words."""
    return tuple(_plan(stage) for stage in stages)


def planned_stages(entries: Sequence[Mapping[str, Any]]) -> tuple[StagePlan, ...]:
    """Stages of a dry run, with steps added to durations in epochs."""
    plans = [decode(StagePlan, {key: entry[key] for key in entry if key != "steps"}, "stages") for entry in entries]
    return tuple(
        replace(plan, duration=f"{plan.duration} ({entry['steps']:,} steps)") if "epoch" in plan.duration else plan
        for plan, entry in zip(plans, entries, strict=True)
    )


def _plan(stage: Stage) -> StagePlan:
    pairs = dict.fromkeys((term.teacher or "labels", term.student) for term in stage.terms)
    arrows = tuple(
        Arrow(teacher, student, tuple(_loss(term) for term in stage.terms if _ends(term) == (teacher, student)))
        for teacher, student in pairs
    )
    duration = _duration(stage)
    pruning = () if stage.pruning is None else (_pruning(stage.pruning),)
    learned = ("only what quantizers learn is trained",) if stage.parameters == "learned" else ()
    begin = tuple(line for action in stage.begin for line in _action(action))
    return StagePlan(
        stage.name, duration, DATA[source_name(stage.data)] if duration else "", (*begin, *pruning, *learned), arrows
    )


def _ends(term: Term) -> tuple[str, str]:
    return term.teacher or "labels", term.student


def _duration(stage: Stage) -> str:
    if stage.steps is not None:
        return f"{stage.steps:,} steps"
    if stage.epochs is None:
        return ""
    return f"{stage.epochs:g} epoch{'' if stage.epochs == 1 else 's'}"


def _loss(term: Term) -> str:
    name = type(term.loss).__name__
    weight = term.weight.value if isinstance(term.weight, Constant) else term.weight
    number = " x schedule" if not isinstance(weight, (int, float)) else "" if weight == 1 else f" x {weight:g}"
    return LOSSES.get(name, name) + number + (f" through {term.through}" if term.through else "")


def _action(action: Any) -> tuple[str, ...]:
    """Describe an action in lines of words; actions defined outside bitstill are shown by class name."""
    match action:
        case actions.Compress(model, compression):
            rules = compression if isinstance(compression, tuple) else (compression,)
            names = [model if len(rules) == 1 else f"{model}, {', '.join(rule.targets)}" for rule in rules]
            return tuple(f"{name}: {_rule(rule)}" for name, rule in zip(names, rules, strict=True))
        case actions.CompressAttention(model, spec):
            return (f"{model}: attention products {spec.name}",)
        case actions.Copy(source, name):
            return (f"{name} = copy of {source}",)
        case actions.ReduceLayers(source, name, layers):
            return (f"{name} = layers {', '.join(map(str, layers))} of {source}",)
        case actions.ReduceWidth(model, fraction):
            return (f"{model}: {fraction:.0%} of its channels, neurons and heads are removed",)
        case actions.AddDenseView(student, name):
            return (f"{name} = {student} + its spare weights",)
        case actions.AddProjection(name, student, teacher):
            return (f"{name}: from {student} to {teacher} hidden units",)
        case actions.Uncompress(model):
            return (f"{model}: back to float",)
        case actions.SplitTernary(model):
            return (f"{model}: each ternary weight becomes two binary ones",)
        case ChooseTernary(model, budget):
            return (f"{model}: those matrices stay ternary that gain most within {budget / 1e6:g} MB, others become binary",)
        case actions.SetDropout(model, probability):
            return (f"{model}: dropout {probability:g}",)
        case actions.SharePoints(model):
            return (f"{model}: points are shared out by gradient",)
    return (type(action).__name__,)


def _pruning(pruning: Pruning) -> str:
    return f"{pruning.model}: {at(pruning.sparsity, 1.0):.0%} zeros in the end; masks move every {pruning.every} steps"


def _rule(rule: Compression) -> str:
    words = [f"weights {rule.weight.name}"]
    if rule.input is not None:
        words.append(f"inputs {rule.input.name}")
    if rule.prune is not None:
        words.append("pruned")
    return "; ".join(words)
