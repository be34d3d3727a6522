"""Records of structured pruning, by which a rebuilt network is shrunk to the same sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitstill.artifact.config_keys import RESIZED
from bitstill.errors import ArtifactError

Record = Mapping[str, Mapping[str, Any]]


def sizes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Shapes of the tensors, and integer settings, of every module by name."""
    by_name = {}
    for name, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers}
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items() if tensor is not None}
        by_name[name] = {"shapes": shapes, "settings": {k: _plain(v) for k, v in vars(module).items() if _whole(v)}}
    return by_name


def changes(before: Record, after: Record) -> dict[str, dict[str, Any]]:
    """Changes between two results of `sizes`, by module; settings on one side only are ignored."""
    changed: dict[str, dict[str, Any]] = {}
    for name, now in after.items():
        for kind, values in now.items():
            old = before[name][kind]
            different = {key: value for key, value in values.items() if key in old and old[key] != value}
            if different:
                changed.setdefault(name, {})[kind] = different
    return changed


def resize(model: nn.Module, record: Record | None) -> None:
    """Resize the layers of `model` by `record`, in place; their values are lost. Repeating it has no effect.

    Args:
        model: a model of the original architecture.
        record: a result of `changes`, perhaps read from a file; None changes nothing.

    Raises:
        ArtifactError: the record names unknown modules, or has impossible sizes.
    """
    if not record:
        return
    modules = dict(model.named_modules())
    for name, entry in record.items():
        module = modules.get(name)
        if module is None:
            raise _mismatch(f"a module {name!r}", "none")
        for key, value in entry.get("settings", {}).items():
            old = module.__dict__.get(key)
            if not _whole(old) or not _whole(value if isinstance(value, int) else tuple(value)):
                raise _mismatch(f"{name}.{key} as a whole number", repr(value))
            module.__dict__[key] = value if isinstance(value, int) else tuple(value)
        for key, shape in entry.get("shapes", {}).items():
            _reshape(module, name, key, shape)
    model.__dict__[RESIZED] = {name: dict(entry) for name, entry in record.items()}


def _reshape(module: nn.Module, name: str, key: str, shape: Any) -> None:
    registry = module._parameters if key in module._parameters else module._buffers
    old = registry.get(key)
    fits = isinstance(shape, list) and old is not None and len(shape) == old.ndim
    if not fits or not all(isinstance(n, int) and 0 < n <= limit for n, limit in zip(shape, old.shape, strict=True)):  # type: ignore[union-attr]
        given = repr(shape) if old is None else f"{shape} for {list(old.shape)}"
        raise _mismatch(f"a shape for {name}.{key} no larger than the original", given)
    assert old is not None
    new: Tensor = torch.zeros(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        module._parameters[key] = nn.Parameter(new, requires_grad=old.requires_grad)
    else:
        module._buffers[key] = new


def _whole(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_whole(each) and not isinstance(each, tuple) for each in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _mismatch(wanted: str, given: str) -> ArtifactError:
    fix = "The file was edited, or is of another architecture; deliver the model again."
    return ArtifactError(wanted, given=given, where=f"config.json: {RESIZED}", fix=fix)
