"""The contract of quantizer state, by a quantizer with a tensor of each role: no other code needs to know its kind."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import bitstill
from bitstill.errors import DataError, SpecError
from bitstill.model.lifecycle import freeze, report, uncompressed
from bitstill.model.weight_transform import WeightTransform
from bitstill.quant import (
    Compression,
    Granularity,
    OptimizerStep,
    PerChannel,
    Plane,
    Quantized,
    Quantizer,
    ScaleDtype,
    State,
    grid_of,
    to_groups,
)
from bitstill.train.optim import AdamW, parameter_groups
from bitstill.train.optimizer_step import after_optimizer_step, quantizer_buffers


@dataclass(frozen=True)
class Everything(Quantizer):
    """sign(weight + other) times a learned scale per row; counts the steps of each row in a buffer."""

    granularity: Granularity = PerChannel()  # noqa: RUF009 (frozen)
    scale_dtype: ScaleDtype = "float32"
    buffer: str = "steps"

    @property
    def name(self) -> str:
        """Name in reports."""
        return "everything"

    def initial_state(self, weight: Tensor, mask: Tensor | None) -> dict[str, State]:
        """One tensor of each role."""
        rows = len(weight)
        return {
            "size": State(torch.ones(rows, 1)),
            "other": State(torch.zeros_like(weight), "weight"),
            self.buffer: State(torch.zeros(rows), "buffer"),
        }

    def quantize(
        self, weight: Tensor, mask: Tensor | None, state: Mapping[str, Tensor], *, training: bool = False
    ) -> Quantized:
        """Quantize to two levels."""
        grid = grid_of(weight.shape, self.granularity)
        values = torch.where(to_groups(weight + state["other"], grid) < 0, -1.0, 1.0)
        return Quantized((Plane(values, torch.tensor([-1.0, 1.0]), state["size"]),), grid, weight.shape, mask)

    def with_gradient(
        self, weight: Tensor, quantized: Quantized, effective: Tensor, state: Mapping[str, Tensor], passes: Tensor | None
    ) -> Tensor:
        """Pass the gradient to all trained tensors, by adding a zero sum."""
        zero = weight + state["other"] + state["size"]
        return effective + (zero - zero.detach())

    def after_step(self, state: Mapping[str, Tensor], step: OptimizerStep) -> None:
        """Count rows with a gradient."""
        if step.gradient is not None:
            state[self.buffer].add_((step.gradient != 0).any(1))

    def never_updated(self, state: Mapping[str, Tensor]) -> bool:
        """Whether no row has been counted yet."""
        return not bool(state[self.buffer].any())

    def latent(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Sum of both weights."""
        return weight + state["other"]


def prepared(layer: nn.Module, quantizer: Quantizer | None = None) -> nn.Sequential:
    model = nn.Sequential(layer)
    bitstill.prepare(model, Compression(weight=quantizer or Everything()))
    return model


def test_each_role_has_its_place_in_checkpoints_and_its_group_in_optimizers():
    model = prepared(nn.Linear(6, 4))
    assert {name for name in model.state_dict() if "transform" in name} == {
        "0.weight_transform.learned.size", "0.weight_transform.latents.other", "0.weight_transform.steps",
    }  # fmt: skip
    transform = model[0].weight_transform
    weights, biases, numbers = parameter_groups(model.named_parameters(), AdamW(weight_decay=0.5, learned_lr_scale=3.0))
    assert [id(p) for p in weights["params"]] == [id(model[0].weight), id(transform.latents["other"])]
    assert weights["weight_decay"] == 0.5 and biases["weight_decay"] == numbers["weight_decay"] == 0.0
    assert [id(p) for p in numbers["params"]] == [id(transform.learned["size"])] and numbers["lr_scale"] == 3.0
    assert quantizer_buffers(model) == ["0.weight_transform.steps"]
    details = {row.parameter: (row.action, row.detail) for row in report(model).rows}
    assert details["0.weight_transform.latents.other"] == ("quantized", "everything")
    assert details["0.weight_transform.learned.size"] == ("float", "learned by the quantizer")


@pytest.mark.parametrize("kind", ["rows first", "rows last"])
def test_after_a_step_it_sees_the_gradient_as_it_sees_the_weight(kind, tmp_path):
    torch.manual_seed(0)
    model = prepared(nn.Linear(6, 4) if kind == "rows first" else Conv1D(4, 6))
    blank = nn.Sequential(nn.Linear(6, 4) if kind == "rows first" else Conv1D(4, 6))
    with pytest.raises(SpecError, match=r"followed an optimizer, got everything ones.*after_optimizer_step"):
        freeze(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for row in (0, 2, 2):
        model(torch.randn(3, 6))[:, row].sum().backward()
        optimizer.step()
        after_optimizer_step(model, optimizer)
        optimizer.zero_grad()
    assert model[0].weight_transform.steps.tolist() == [1, 0, 2, 0]
    x = torch.randn(5, 6)
    assert not torch.equal(model[0].weight_transform.learned["size"], torch.ones(4, 1))
    float_network = uncompressed(model)
    transform = model[0].weight_transform
    flip = (lambda tensor: tensor.T) if kind == "rows last" else (lambda tensor: tensor)
    assert torch.equal(float_network[0].weight, flip(flip(model[0].weight) + transform.latents["other"]))
    bitstill.save(model, tmp_path / "out")
    assert torch.equal(bitstill.load(tmp_path / "out", model=blank)(x), model.eval()(x))


def test_rows_in_use_are_quantized_with_their_own_state():
    model = prepared(nn.Embedding(9, 6))
    transform = model[0].weight_transform
    with torch.no_grad():
        transform.learned["size"].copy_(torch.arange(9.0)[:, None])
        transform.latents["other"].normal_()
    ids = torch.tensor([[4, 7, 4]])
    assert torch.equal(model(ids), model[0].effective_weight()[ids])


def test_copies_keep_their_own_state():
    model = prepared(nn.Linear(6, 4))
    other = copy.deepcopy(model)
    other[0].weight_transform.after_step(OptimizerStep("0", "SGD", torch.ones(4, 6), None))
    assert other[0].weight_transform.steps.tolist() == [1] * 4 and model[0].weight_transform.steps.tolist() == [0] * 4


def test_numbers_that_are_not_finite_are_not_delivered():
    model = prepared(nn.Linear(6, 4))
    model[0].weight_transform.steps.fill_(1)
    model[0].weight_transform.learned["size"].data[2] = torch.nan
    with pytest.raises(DataError, match="0, size of its quantizer: wanted finite"):
        freeze(model)


@pytest.mark.parametrize("name", ["mask", "quantizer", "learned"])
def test_a_buffer_with_a_name_that_is_taken_is_refused(name):
    with pytest.raises(SpecError, match=f"wanted a name that is free, got '{name}'"):
        prepared(nn.Linear(6, 4), Everything(buffer=name))


def test_another_quantizer_takes_its_state_along():
    transform = WeightTransform(Everything(), torch.randn(4, 6))
    plain = Everything(buffer="count")
    transform.set_quantizer(plain, plain.initial_state(torch.zeros(4, 6), None))
    assert set(transform.state_dict()) == {"learned.size", "latents.other", "count"}
    assert transform.buffer_names == ("count",)
