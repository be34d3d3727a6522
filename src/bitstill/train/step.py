"""A training step as one module: run each model once, compute every term.

All trained models are submodules of it, so that DistributedDataParallel wraps one module and sees one forward pass per step,
even when two models share parameters. Frozen teachers run outside, without gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bitstill.data.task import Batch, Task
from bitstill.errors import DataError, MatchError, TrainingError
from bitstill.losses.projection import Projection
from bitstill.losses.taps import Output, tap
from bitstill.schedules import at
from bitstill.train.stage import Stage, Term


class TrainingStep(nn.Module):
    """Trained models and loss terms of a stage.

    Args:
        stage: stage that names models and terms.
        models: all models; only those in `stage.train` become submodules.
        task: task that runs a model on a batch.
    """

    def __init__(self, stage: Stage, models: Mapping[str, nn.Module], task: Task) -> None:
        super().__init__()
        self.models = nn.ModuleDict({name: models[name] for name in stage.train})
        self.stage, self.task = stage, task

    def forward(
        self, batch: Batch, targets: Mapping[str, Output], progress: float, probe: bool
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Compute the weighted sum of all terms.

        Args:
            batch: inputs of the trained models, and labels.
            targets: outputs of the frozen teachers.
            progress: fraction of the stage done so far.
            probe: also compute the norm of each term's gradient at its student's outputs.

        Returns:
            The sum, each term's own (detached) value, and with `probe` each term's gradient norm.
        """
        runs = {name: model for name, model in self.models.items() if not isinstance(model, Projection)}
        outputs = {name: run(m, self.task, batch, taps(self.stage, name)) for name, m in runs.items()}
        known = {**targets, **{name: output.detach() for name, output in outputs.items()}}
        values: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch["labels"].device)
        for term in self.stage.terms:
            student = outputs[term.student]
            target = known[term.teacher] if term.teacher else None
            if not any(term.loss.taps()):
                _check_same_classes(student, target, term.name)
            loss_of = functools.partial(self._value, term, target=target, labels=batch["labels"], progress=progress)
            value = loss_of(student)
            total = total + at(term.weight, progress) * value
            values[term.name] = value.detach()
            if probe:
                norms[term.name] = gradient_norm(loss_of, student)
        return total, values, norms

    def _value(self, term: Term, student: Output, target: Output | None, labels: Tensor, progress: float) -> Tensor:
        seen = student if term.through is None else self._projected(student, term.through)
        return term.loss(seen, target, labels, progress)

    def _projected(self, student: Output, name: str) -> Output:
        projection = self.models[name]
        assert isinstance(projection, Projection)
        return Output(student.logits, {key: projection(value) for key, value in student.features.items()}, student.positions)


def run(model: nn.Module, task: Task, batch: Batch, names: tuple[str, ...]) -> Output:
    """Run `model` on `batch` and collect its logits and the outputs of the modules `names`."""
    with tap(model, names) as features:
        logits = task.outputs(model, batch)
    for name in names:
        if name not in features:
            raise MatchError(
                "a module that runs and returns a tensor",
                given=repr(name),
                where=f"layer pair, {type(model).__name__}",
                fix="Attention scores need a model loaded by bitstill.hf whose attention is dispatched (DeBERTa's is not)."
                if name.startswith(("scores:", "heads:"))
                else "Name a module that the forward pass calls.",
            )
    mask = batch.get("attention_mask")
    return Output(logits, features, None if mask is None else mask.bool())


def taps(stage: Stage, model: str) -> tuple[str, ...]:
    """Names of the modules of `model` whose outputs the stage's terms need."""
    names: dict[str, None] = {}
    for term in stage.terms:
        students, teachers = term.loss.taps()
        names |= dict.fromkeys((students if term.student == model else ()) + (teachers if term.teacher == model else ()))
    return tuple(names)


def check_gradients(norms: Mapping[str, float], stage: Stage) -> None:
    """Check that every term has had a gradient at its student's outputs.

    Raises:
        TrainingError: a term's gradient was exactly zero; names the term.
    """
    for name, norm in norms.items():
        if norm == 0.0:
            raise TrainingError(
                "a loss with a gradient",
                given="exactly zero in every step so far",
                where=f"stage {stage.name!r}, term {name}",
                fix="A soft cross-entropy over one output is constant (use MeanSquaredError); identical models teach nothing.",
            )


def gradient_norm(loss_of: Callable[[Output], Tensor], student: Output) -> Tensor:
    """L1 norm of a loss's gradient at the student's outputs, a scalar.

    It is taken at copies of them, since `torch.autograd.grad` cannot pass through reentrant checkpoints.
    """
    logits, *features = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in student.tensors()]
    copies = Output(logits, dict(zip(student.features, features, strict=True)), student.positions)
    leaves = [tensor for tensor in copies.tensors() if tensor.requires_grad]
    value = loss_of(copies) if leaves else logits
    gradients = torch.autograd.grad(value, leaves, allow_unused=True) if leaves and value.requires_grad else ()
    return sum((g.abs().sum().float() for g in gradients if g is not None), torch.zeros((), device=logits.device))


def _check_same_classes(student: Output, target: Output | None, term: str) -> None:
    if target is not None and target.logits.shape != student.logits.shape:
        raise DataError(
            "teacher and student with the same classes",
            given=f"logits {tuple(target.logits.shape)} and {tuple(student.logits.shape)}",
            where=f"term {term}",
            fix="Train or choose a teacher for this task.",
        )
