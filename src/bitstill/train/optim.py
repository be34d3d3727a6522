"""Optimizers as data: a rule and its hyperparameters; the learning rate may be a schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import nn

from bitstill.constraints import FractionBelowOne, NonNegative, Positive, Range, check_fields
from bitstill.errors import SpecError
from bitstill.model.weight_transform import belongs_to_quantizer
from bitstill.schedules import Cosine, Scheduled, at
from bitstill.train.bert_adam import BertAdam


class Optimizer(Protocol):
    """Settings of an optimizer; a frozen dataclass."""

    @property
    def lr(self) -> Scheduled:
        """Learning rate: a number or a schedule over the stage."""

    @property
    def weight_decay(self) -> float:
        """Decay of weights; biases, norms and learned quantizer tensors do not decay."""

    @property
    def learned_lr_scale(self) -> float:
        """Learning rate of the quantizers' learned tensors, as a multiple of `lr`."""

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """Build the torch optimizer over parameter groups, each with its own `weight_decay`."""


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum.

    Args:
        lr: learning rate, a number or a schedule.
        momentum, nesterov, weight_decay: as in `torch.optim.SGD`.
        learned_lr_scale: learning rate of the quantizers' learned tensors, as a multiple of `lr`; they never decay.
    """

    lr: Annotated[Scheduled, Range(least=0)] = Cosine(0.05)
    momentum: FractionBelowOne = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4
    learned_lr_scale: NonNegative = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """The torch optimizer over parameter groups."""
        return torch.optim.SGD(groups, lr=at(self.lr, 0.0), momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        lr: learning rate, a number or a schedule.
        beta1, beta2, eps, weight_decay: as in `torch.optim.AdamW`.
        learned_lr_scale: as for `SGD`.
        bias_correction: divide the moments by what they lack for having started at zero; False is BertAdam (Devlin et al. 2019;
            BinaryBERT's code), whose first steps are longer: 3.2 times at step 100, 1.26 times at step 1,000.
    """

    lr: Annotated[Scheduled, Range(least=0)] = Cosine(1e-3)
    beta1: FractionBelowOne = 0.9
    beta2: FractionBelowOne = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01
    learned_lr_scale: NonNegative = 1.0
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """The torch optimizer over parameter groups."""
        kind = torch.optim.AdamW if self.bias_correction else BertAdam
        # Fused: with a table of word embeddings, unfused Adam's passes over memory take a third of a step on a CPU.
        return kind(groups, lr=at(self.lr, 0.0), betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], optimizer: Optimizer) -> list[dict[str, object]]:
    """Three groups: weights, which decay; biases and norms, which do not; learned quantizer tensors, with their own rate.

    Raises:
        SpecError: no parameter is left to train.
    """
    weights, plain, learned = [], [], []
    for name, parameter in named:
        if belongs_to_quantizer(name):
            learned.append(parameter)
        elif parameter.ndim < 2:
            plain.append(parameter)
        else:
            weights.append(parameter)
    if not (weights or plain or learned):
        raise SpecError("parameters to train", given="none", where="stage", fix="Check the stage's `train` and `parameters`.")
    groups = [
        {"params": weights, "weight_decay": optimizer.weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
        {"params": learned, "weight_decay": 0.0, "lr_scale": optimizer.learned_lr_scale},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its learning rate for the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
