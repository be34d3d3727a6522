"""Copies of live models: structure and state are copied, attributes that cannot be copied are shared.

A network may hold an activation of its last forward pass, a weight computed by the old weight norm or `torch.nn.utils.prune`, a
lock or an open file. `copy.deepcopy` fails on all of these; freezing, delivering and comparing a model need none of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bitstill.model.wrappers import inner_model, unwrapped

_REGISTRIES = ("_parameters", "_buffers", "_modules")


def copy_model(model: nn.Module, where: str = "copy") -> nn.Module:
    """Copy `model`, without wrappers around or inside it.

    Tensors with autograd history are detached; attributes that cannot be copied are shared with `model`.

    Args:
        model: any module.
        where: name of the calling function, for errors.

    Raises:
        SpecError: a wrapper hides the weights.
    """
    return copy_models({"model": model}, where)["model"]


def copy_models(models: Mapping[str, nn.Module], where: str = "copy") -> dict[str, nn.Module]:
    """Copy several models as `copy_model` does; copies share the objects that the models share."""
    networks = {name: unwrapped(model, where) for name, model in models.items()}
    try:
        return _deep_copies(networks, {})
    except Exception:  # attributes of foreign classes may raise anything
        return _deep_copies(networks, _stand_ins(networks))


def _deep_copies(networks: dict[str, nn.Module], memo: dict[int, Any]) -> dict[str, nn.Module]:
    for module in [module for network in networks.values() for module in network.modules()][::-1]:  # innermost first
        inner = inner_model(module)
        if inner is not None:
            memo[id(module)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(networks, memo)


def _stand_ins(networks: Mapping[str, nn.Module]) -> dict[int, Any]:
    """Substitutes for objects that cannot be copied, by identity, as a memo of `copy.deepcopy`."""
    modules = [module for network in networks.values() for module in network.modules()]
    stand_ins: dict[int, Any] = {}
    for buffer in (buffer for module in modules for buffer in module._buffers.values()):
        if buffer is not None and not buffer.is_leaf:
            stand_ins[id(buffer)] = buffer.detach().clone()
    state = [(module, *module._parameters.values(), *module._buffers.values()) for module in modules]
    copied_elsewhere = {id(part): part for parts in state for part in parts}
    seen: set[int] = set()
    for module in modules:
        for name, value in vars(module).items():
            if name not in _REGISTRIES:
                _note(value, copied_elsewhere, stand_ins, seen)
    return stand_ins


def _note(value: Any, copied_elsewhere: Mapping[int, Any], stand_ins: dict[int, Any], seen: set[int]) -> None:
    """Add the objects within `value` that cannot be copied to `stand_ins`."""
    if id(value) in seen:
        return
    seen.add(id(value))
    try:
        copy.deepcopy(value, dict(copied_elsewhere))
    except Exception:  # as above
        if isinstance(value, Tensor):
            stand_ins[id(value)] = value.detach().clone()
        elif isinstance(value, (dict, list, tuple, set)):
            for item in value.values() if isinstance(value, dict) else value:
                _note(item, copied_elsewhere, stand_ins, seen)
        else:
            stand_ins[id(value)] = value
