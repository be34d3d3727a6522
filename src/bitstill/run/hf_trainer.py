"""For those who keep their own `transformers.Trainer`: a loss for it, and a callback that delivers.

bitstill.prepare(model, rule)
loss = DistillationLoss(model, teacher, terms)
trainer = Trainer(model, ..., compute_loss_func=loss, callbacks=[Deliver("out", tokenizer=tokenizer)])
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from bitstill.deliver.deliver import save
from bitstill.errors import SpecError, TrainingError
from bitstill.hf import attention_scores as attention
from bitstill.losses.taps import Output, as_logits, tap
from bitstill.model.writer import Storage
from bitstill.schedules import at
from bitstill.train.following import Following
from bitstill.train.stage import Stage, Term
from bitstill.train.step import taps


class DistillationLoss:
    """A `compute_loss_func` made of loss terms. It runs the teacher on the inputs that the student has just seen.

    Args:
        student: the model that trains; hooks stay on it until `close`.
        teacher: frozen here, in eval mode.
        terms: edges from "teacher", or from None for the labels, to "student".
        steps: how many batches there will be, for terms whose weight is a schedule.

    Raises:
        SpecError: a term between other models, or a schedule without `steps`.
        MatchError: a term names a layer that is not there.
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
            attention.use(model)
        self.teacher = teacher.eval().requires_grad_(False)
        self.terms, self.steps, self.seen = tuple(terms), steps, 0
        self._stage = Stage("trainer", terms=self.terms, steps=steps or 1)
        self._inputs: Mapping[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._features = self._stack.enter_context(tap(student, taps(self._stage, "student")))
        self._stack.callback(student.register_forward_pre_hook(self._remember, with_kwargs=True).remove)

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The weighted sum of all terms; as Trainer expects, per sample of the whole accumulated batch.

        Raises:
            TrainingError: the student has not been run, or saw no labels that a term needs.
        """
        if not self._inputs:
            raise TrainingError(
                "a student that has just run", given="none", where="DistillationLoss", fix="Pass Trainer the same model."
            )
        mask = self._inputs.get("attention_mask")
        positions = None if mask is None else mask.bool()
        student = Output(as_logits(outputs), dict(self._features), positions)
        inputs = {name: value for name, value in self._inputs.items() if name not in ("labels", "num_items_in_batch")}
        with torch.no_grad(), tap(self.teacher, taps(self._stage, "teacher")) as features:
            target = Output(as_logits(self.teacher(**inputs)), features, positions)
        progress = min(1.0, self.seen / self.steps) if self.steps else 0.0
        self.seen += int(torch.is_grad_enabled())
        samples = student.logits.shape[0]
        marks = torch.zeros(samples, dtype=torch.int64, device=student.logits.device) if labels is None else labels
        total = torch.zeros((), device=student.logits.device)
        for term in self.terms:
            total = total + at(term.weight, progress) * term.loss(student, target if term.teacher else None, marks, progress)
        return total if num_items_in_batch is None else total * samples / num_items_in_batch

    def close(self) -> None:
        """Take the hooks off the student."""
        self._stack.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> DistillationLoss:
        """Itself: a copy of the student (freezing makes one) takes its hooks along, but must not take the teacher."""
        return self

    def _remember(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = kwargs


class Deliver(TrainerCallback):
    """Delivers the trained student as an artifact when Trainer has finished; until then its quantizers follow the optimizer.

    Args:
        folder: where; an older artifact there is replaced in one step.
        tokenizer: kept beside the model.
        storage: how leftovers and codes are stored.
    """

    def __init__(self, folder: str | Path, *, tokenizer: Any = None, storage: Storage | None = None) -> None:
        self.folder, self.tokenizer, self.storage = Path(folder), tokenizer, storage
        self._follow: Following | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what another Trainer has trained."""
        self._follow = None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the quantizers follow, which learned points and loss-aware ones need."""
        optimizer = kwargs["optimizer"]
        if getattr(optimizer, "step_was_skipped", False):  # its gradients were not finite
            return
        if self._follow is None:
            self._follow = Following(kwargs["model"], getattr(optimizer, "optimizer", optimizer))
        self._follow()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze, pack, write, read back, check."""
        if state.is_world_process_zero:
            save(kwargs["model"], self.folder, storage=self.storage, tokenizer=self.tokenizer)
