"""Wrappers around a model: torch.compile, data parallelism and averages are removed; those that hide weights are refused."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bitstill.errors import SpecError

COMPILED = "OptimizedModule"
"""Class name of compiled models. Importing the class itself would import the compiler."""
_INSIDE: Mapping[str, str] = {
    COMPILED: "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",  # of torch.optim.swa_utils
    "ModelEmaV2": "module",  # of timm
    "ModelEmaV3": "module",
    "EMA": "ema_model",  # of ema-pytorch
}
"""Name of the attribute that holds the wrapped model, by class name of the wrapper."""
_WHOLE = "Load its full state dict into the network that it was made of."
_REFUSED: Mapping[str, tuple[str, str]] = {
    "FullyShardedDataParallel": ("sharded parameters", _WHOLE),
    "FSDPModule": ("sharded parameters", _WHOLE),
    "DeepSpeedEngine": ("parameters that DeepSpeed may shard", _WHOLE),
    "ScriptModule": ("a scripted or traced network", "Pass the network that it was made of."),
}
"""Reason for refusing a module and the fix, by class name."""
_ADAPTERS = ("peft",)


def inner_model(module: nn.Module) -> nn.Module | None:
    """Model inside a wrapper; None if `module` is not a wrapper."""
    for name in _class_names(module):
        inner = module._modules.get(_INSIDE.get(name, ""))
        if inner is not None:
            return inner
    return None


def unwrapped(model: nn.Module, where: str) -> nn.Module:
    """Remove the wrappers around `model`; the result is not a copy.

    Args:
        model: a network, or a wrapper around one.
        where: name of the calling function, for errors.

    Raises:
        SpecError: `model` is not a module, or its weights are sharded, scripted or split into adapters.
    """
    if not isinstance(model, nn.Module):
        raise SpecError("a torch.nn.Module", given=type(model).__name__, where=where, fix="Pass the network itself.")
    _check_readable(model, where)
    inner = inner_model(model)
    while inner is not None:
        model, inner = inner, inner_model(inner)
    return model


def without_compiler(model: nn.Module, where: str) -> nn.Module:
    """Network inside a compiled model, for changes in place.

    Raises:
        SpecError: it has another wrapper, which has registered the parameters.
    """
    if not isinstance(model, nn.Module) or type(model).__name__ == COMPILED:
        return without_compiler(unwrapped(model, where), where)
    _check_readable(model, where)
    if inner_model(model) is not None:
        fix = f"Prepare the network first, and put {type(model).__name__} around it afterwards."
        raise SpecError("a network without a wrapper", given=type(model).__name__, where=where, fix=fix)
    return model


def _check_readable(model: nn.Module, where: str) -> None:
    for name, module in model.named_modules():
        place = f"{where}, {name}" if name else where
        for cls in _class_names(module):
            if cls in _REFUSED:
                given, fix = _REFUSED[cls]
                raise SpecError("a network that holds its weights", given=f"{cls}: {given}", where=place, fix=fix)
        if any(cls.__module__.split(".")[0] in _ADAPTERS for cls in type(module).__mro__):
            given = f"{type(module).__name__} of peft: weights with adapters beside them"
            fix = "Merge them first: model = model.merge_and_unload()."
            raise SpecError("a network that holds its weights", given=given, where=place, fix=fix)


def _class_names(module: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__]
