"""Train and eval mode: a look at a model leaves no trace in it, and what its owner keeps in eval mode stays there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

_STAYS_IN_EVAL = "_stays_in_eval"


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in eval mode; afterwards every module returns to its own mode.

    Modes are restored one by one, since single modules such as norm layers may be kept in eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def remember_eval_mode(model: nn.Module) -> nn.Module:
    """Mark what the owner of `model` keeps in eval mode, such as a pretrained batch norm, so that training leaves it there.

    In a model in train mode these are all modules in eval mode. A model as a whole in eval mode may just have been loaded or
    evaluated: there they are the norm layers whose parameters are all frozen.
    """
    for module in model.modules():
        frozen = [not parameter.requires_grad for parameter in module.parameters()]
        is_frozen_norm = "Norm" in type(module).__name__ and bool(frozen) and all(frozen)
        if not module.training and (model.training or is_frozen_norm):
            module.__dict__[_STAYS_IN_EVAL] = True
    return model


def stays_in_eval(model: nn.Module) -> list[nn.Module]:
    """The modules of `model` that `remember_eval_mode` has marked."""
    return [module for module in model.modules() if module.__dict__.get(_STAYS_IN_EVAL)]


def set_training(model: nn.Module, in_eval: Iterable[nn.Module]) -> None:
    """Put `model` into train mode, but for the modules `in_eval`."""
    model.train()
    for module in in_eval:
        module.training = False
