"""A guard on `save_pretrained` of transformers models with compressed layers.

It would write latent weights under ordinary names, from which `from_pretrained` builds a float model with different outputs. If
the state dict is passed, as by `Trainer`, a checkpoint is written with a marked config: transformers refuses a
`quantization_config` without a method in any process, and resuming a `Trainer` ignores it.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import nn

from bitstill.errors import SpecError
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.packed_layers import is_packed

KEY = "quantization_config"
MARK = {"bitstill": "weights of compressed layers, of use to that model alone: deliver it with bitstill.save(model, folder)"}


def guard_saving(model: nn.Module) -> None:
    """Guard all pretrained models within `model` that have compressed layers, `model` itself included.

    Their configs become marked copies, in every module that shares one, since another model may use the same object.
    """
    for module in model.modules():
        config = _pretrained_config(module)
        if config is None or not any(is_compressed(layer) or is_packed(layer) for layer in module.modules()):
            continue
        module.__dict__["save_pretrained"] = functools.partial(_save_checkpoint, module)
        if getattr(config, KEY, None) is None:
            marked = copy.copy(config)
            setattr(marked, KEY, dict(MARK))
            for owner in module.modules():
                if owner.__dict__.get("config") is config:
                    owner.__dict__["config"] = marked


def release_saving(model: nn.Module) -> None:
    """Undo `guard_saving`, in a copy of the model with ordinary layers."""
    for module in model.modules():
        config = _pretrained_config(module)
        if config is not None and module.__dict__.pop("save_pretrained", None) and getattr(config, KEY, None) == MARK:
            delattr(config, KEY)


def _pretrained_config(module: nn.Module) -> Any:
    """Config of a model of transformers; None for other modules."""
    config = module.__dict__.get("config")
    return config if hasattr(module, "save_pretrained") and hasattr(config, "to_diff_dict") else None


def _save_checkpoint(model: Any, folder: Any, *arguments: Any, **settings: Any) -> Any:
    """`save_pretrained` where the state dict is passed.

    Raises:
        SpecError: it is not.
    """
    if "state_dict" not in settings:
        raise SpecError(
            "a float model",
            given="compressed layers, of whose weights from_pretrained would make another model",
            where="save_pretrained",
            fix="Use bitstill.save(model, folder); copy the folder of one that is delivered; for a checkpoint pass state_dict.",
        )
    return type(model).save_pretrained(model, folder, *arguments, **settings)
