"""A few hundred of the digits, and networks for them, fast enough for a test that trains."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from bitstill.data.catalogue import load_task
from bitstill.data.networks import build, from_architecture
from bitstill.data.task import Split, Task
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.select import candidates
from bitstill.train.settings import Settings

QUIET = Settings(progress=False, device="cpu", teacher_precision="float32")


@cache
def task(samples: int = 256) -> Task:
    """The digits, with `samples` training images and 64 in each other split."""
    whole = load_task("digits")
    parts = {"train": samples, "validation": 64, "test": 64}
    return replace(whole, **{name: _first(getattr(whole, name), count) for name, count in parts.items()})


def _first(split: Split, count: int) -> Split:
    return Split({"image": split.inputs["image"][:count]}, split.labels[:count])


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return from_architecture({"architecture": "resnet", "arguments": {"depth": 8, "width": 4, "channels": 1}})


def conv_net(name: str = "digits-student", role: str = "student") -> nn.Module:
    return build(name, 0, role)


def float_layers(model: nn.Module) -> set[str]:
    """Layers that could have been compressed but were not."""
    return set(candidates(model))


def compressed_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if is_compressed(module)}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
