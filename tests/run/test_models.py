"""Assignment of networks to roles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bitstill.data import digits
from bitstill.errors import SpecError
from bitstill.model.lifecycle import freeze
from bitstill.quant.rules import QuantizeInput
from bitstill.recipes import PostTraining, QuantizedDistillation
from bitstill.run.models import resolve_models


def test_a_path_is_a_folder_and_never_a_name() -> None:
    recipe, task = QuantizedDistillation(), digits.load()
    with pytest.raises(SpecError, match="folder of an artifact"):
        resolve_models(recipe, {"teacher": Path("digits-teacher"), "student": "digits-student"}, 0, task)
    cast = resolve_models(recipe, {"teacher": "digits-teacher", "student": "digits-student"}, 0, task)
    assert cast.untrained == {"teacher", "student"}


def test_learned_input_ranges_need_training() -> None:
    with pytest.raises(SpecError, match="range='dynamic' for inputs"):
        PostTraining(input=QuantizeInput(4, range="step", per="tensor"))


def test_buffers_that_are_not_stored_are_left_alone_when_freezing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("causal", torch.full((3, 3), -torch.inf).triu(1), persistent=False)
            self.register_buffer("table", torch.full((3,), 1 / 3), persistent=False)

    frozen = freeze(Masked(), "float16")
    assert bool(torch.isinf(frozen.causal).any())
    assert torch.equal(frozen.table, torch.full((3,), 1 / 3))
