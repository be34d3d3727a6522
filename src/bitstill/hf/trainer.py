"""Support for `transformers.Trainer`: a distillation loss, and a callback for the quantizers.

    bitstill.prepare(student, rule)
    loss = DistillationLoss(student, teacher, terms)
    trainer = Trainer(student, ..., compute_loss_func=loss, callbacks=[bitstill.deliver_callback("out", ...)])

The callback from `bitstill.deliver_callback` also delivers the student at the end.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from bitstill.errors import SpecError, TrainingError
from bitstill.hf import attention_scores
from bitstill.losses.taps import Output, as_logits, tap
from bitstill.schedules import at
from bitstill.train.loop import PROBED_STEPS
from bitstill.train.optimizer_step import after_optimizer_step
from bitstill.train.stage import Stage, Term
from bitstill.train.step import check_gradients, gradient_norm, taps

_ARGUMENTS: WeakKeyDictionary[nn.Module, TrainingArguments] = WeakKeyDictionary()
"""Arguments of the Trainer by model, recorded by `QuantizerCallback`, since a loss function does not receive them."""


class DistillationLoss:
    """A `compute_loss_func` from loss terms, which runs the teacher on the student's inputs.

    Args:
        student: trained model, which keeps hooks until `close`.
        teacher: teacher, which is frozen and set to eval mode.
        terms: edges from "teacher", or from None for the labels, to "student".
        steps: total number of batches, for terms whose weight is a schedule.

    Raises:
        SpecError: a term between other models, or a schedule without `steps`.
        MatchError: a term names a layer that does not exist.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, terms: Sequence[Term], steps: int | None = None) -> None:
        for term in terms:
            if term.student != "student" or term.teacher not in (None, "teacher"):
                fix = "Mutual learning needs bitstill's own loop."
                raise SpecError("terms from teacher to student", given=term.name, where="DistillationLoss", fix=fix)
            if steps is None and not isinstance(term.weight, (int, float)):
                fix = "Pass steps, the number of batches."
                raise SpecError("the length of the schedule", given="none", where=term.name, fix=fix)
        for model in (student, teacher):
            attention_scores.use(model)
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        self.terms, self.steps, self.seen = tuple(terms), steps, 0
        self._stage = Stage("trainer", terms=self.terms, steps=steps or 1)
        self._norms = dict.fromkeys((term.name for term in self.terms), 0.0)
        self._inputs: Mapping[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._features = self._stack.enter_context(tap(student, taps(self._stage, "student")))
        self._stack.callback(student.register_forward_pre_hook(self._remember_inputs, with_kwargs=True).remove)

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Compute the weighted sum of all terms.

        Args:
            outputs: outputs of the student.
            labels: (batch,), or None if no term needs them.
            num_items_in_batch: samples in all batches that Trainer accumulates for a step; the result is this batch's share.

        Raises:
            TrainingError: the student has not run, a term has no gradient, or Trainer lacks the callback.
            SpecError: a setting of Trainer would be ignored.
        """
        training = torch.is_grad_enabled()
        if training and num_items_in_batch is not None:
            _check_arguments(self.student)
        student, target = self._student_output(outputs), self._teacher_output()
        progress = min(1.0, self.seen / self.steps) if self.steps else 0.0
        samples = student.logits.shape[0]
        if labels is None:
            labels = torch.zeros(samples, dtype=torch.int64, device=student.logits.device)
        total = torch.zeros((), device=student.logits.device)
        for term in self.terms:
            other = target if term.teacher else None
            value = term.loss(student, other, labels, progress)
            if training and not value.requires_grad:
                check_gradients({term.name: 0.0}, self._stage)
            if training and self.seen < PROBED_STEPS:
                loss_of = functools.partial(term.loss, target=other, labels=labels, progress=progress)
                self._norms[term.name] += float(gradient_norm(loss_of, student))
            total = total + at(term.weight, progress) * value
        if training:
            self.seen += 1
            if self.seen == PROBED_STEPS:
                check_gradients(self._norms, self._stage)
        return total if num_items_in_batch is None else total * samples / num_items_in_batch

    def close(self) -> None:
        """Remove the hooks from the student."""
        self._stack.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> DistillationLoss:
        """Return itself: a copy of the student, as made for freezing, copies its hooks, but must not copy the teacher."""
        return self

    def _remember_inputs(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = kwargs

    @property
    def _positions(self) -> Tensor | None:
        mask = self._inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    def _student_output(self, outputs: Any) -> Output:
        if not self._inputs:
            fix = "Pass Trainer the same model."
            raise TrainingError("a student that has just run", given="none", where="DistillationLoss", fix=fix)
        return Output(as_logits(outputs), dict(self._features), self._positions)

    def _teacher_output(self) -> Output:
        inputs = {name: value for name, value in self._inputs.items() if name not in ("labels", "num_items_in_batch")}
        with torch.no_grad(), tap(self.teacher, taps(self._stage, "teacher")) as features:
            return Output(as_logits(self.teacher(**inputs)), features, self._positions)


class QuantizerCallback(TrainerCallback):
    """Callback that updates the state of quantizers after each optimizer step of Trainer.

    Args:
        finished: called with the trained model at the end, on the main process.
    """

    def __init__(self, finished: Callable[[nn.Module], object] | None = None) -> None:
        self.finished = finished

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record Trainer's arguments for the loss."""
        _ARGUMENTS[kwargs["model"]] = args

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the quantizers, unless the step was skipped because of non-finite gradients."""
        optimizer = kwargs["optimizer"]
        if not getattr(optimizer, "step_was_skipped", False):
            after_optimizer_step(kwargs["model"], getattr(optimizer, "optimizer", optimizer))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass on the trained model."""
        if self.finished is not None and state.is_world_process_zero:
            self.finished(kwargs["model"])


def _check_arguments(student: nn.Module) -> None:
    """Check that Trainer has the callback, and no setting that only its own loss obeys."""
    arguments = _ARGUMENTS.get(student)
    if arguments is None:
        raise TrainingError(
            "Trainer with the callback that updates the quantizers after each step",
            given="none",
            where="DistillationLoss",
            fix="Pass Trainer callbacks=[QuantizerCallback()] of bitstill.hf.trainer, or deliver_callback(...).",
        )
    if arguments.label_smoothing_factor:
        raise SpecError(
            "label_smoothing_factor 0 in TrainingArguments",
            given=str(arguments.label_smoothing_factor),
            where="DistillationLoss",
            fix=f"Smooth the labels in a term: CrossEntropy(label_smoothing={arguments.label_smoothing_factor}).",
        )


__all__ = ["DistillationLoss", "QuantizerCallback"]
