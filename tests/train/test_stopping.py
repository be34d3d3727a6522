"""A process asked to stop finishes its step and writes a checkpoint; the resumed run ends with the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import bitstill.train.loop as loop
from bitstill.losses.logits import CrossEntropy
from bitstill.train.checkpoint import Checkpoint
from bitstill.train.loop import train
from bitstill.train.optim import AdamW
from bitstill.train.settings import Settings
from bitstill.train.stage import Stage, Term

from .tiny import network, task

QUIET = Settings(progress=False, device="cpu")
STAGE = Stage("long", terms=(Term(CrossEntropy()),), steps=6, batch_size=8, optimizer=AdamW(1e-3))


def run(path: Path | None, *, resume: bool = False) -> tuple[nn.Module, list[dict[str, object]]]:
    models: dict[str, nn.Module] = {"student": network(1)}
    history = train([STAGE], models, task(), QUIET, identity={}, checkpoint_path=path, resume=resume)
    return models["student"], history


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_in_the_middle_of_a_step_ends_the_run_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, ends: type[BaseException]
) -> None:
    whole, history = run(None)
    real, calls = loop._forward_backward, 0

    def signalled(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), number)
        return real(*arguments)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_forward_backward", signalled)
        with pytest.raises(ends) as stopped:
            run(tmp_path / "checkpoint")
    assert signal.getsignal(number) is handler
    if number == signal.SIGTERM:
        assert stopped.value.code == 143  # type: ignore[attr-defined]
    assert Checkpoint(tmp_path / "checkpoint", {}).position.step == 3, "the step under way was finished"
    resumed, again = run(tmp_path / "checkpoint", resume=True)
    assert again == history, "also the mean losses of entries that the stop has cut in two"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_second_request_interrupts_at_once() -> None:
    from bitstill.train.stopping import StopRequest

    request = StopRequest()
    request.obey()
    request.note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        request.note(signal.SIGINT, None)
