"""Conversion between a transformers model and the `config.json` of an artifact."""

from __future__ import annotations

import json
from typing import Any

import transformers
from torch import nn

from bitstill.artifact.config_keys import POOLER, TRANSFORMERS_WEIGHTS, without_code
from bitstill.errors import ArtifactError, one_line
from bitstill.hf import attention_scores
from bitstill.hf.auto_classes import is_known
from bitstill.hf.quantizer import REFUSAL
from bitstill.hf.quiet import quiet


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """Contents of `config.json` for a transformers model, from which `from_config` and `from_pretrained` rebuild it.

    Returns:
        None for other models, and for those with a head that artifacts do not describe: whoever loads them passes the network.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict") or type(model).__module__.split(".")[0] != "transformers":
        return None
    if not is_known(type(model).__name__):
        return None
    assert config is not None
    content = without_code(json.loads(config.to_json_string(use_diff=True)))
    content.pop("quantization_config", None)  # set by `model.save_guard`; the writer of the artifact adds its own
    content |= {"architectures": [type(model).__name__], "dtype": "float32", TRANSFORMERS_WEIGHTS: REFUSAL}
    if getattr(model, "pooler", model) is None:  # an argument of the class that is not part of transformers' configs
        content[POOLER] = False
    return content


def from_config(config: dict[str, Any]) -> nn.Module:
    """Build and initialise a model from an artifact's `config.json`.

    Raises:
        ArtifactError: transformers does not know the architecture.
    """
    own_keys = ("quantization_config", TRANSFORMERS_WEIGHTS)
    settings = {key: value for key, value in without_code(config).items() if key not in own_keys}
    try:
        model = _build(settings)
    except Exception as error:  # each architecture has its own ways to fail on an invalid config
        raise ArtifactError(
            "a classifier, or a model without a head, that transformers knows",
            given=one_line(error),
            where="config.json",
            fix="Upgrade transformers, or pass the network: bitstill.load(folder, model=network).",
        ) from error
    attention_scores.use(model)
    return model


def _build(settings: dict[str, Any]) -> nn.Module:
    name = (settings.get("architectures") or [None])[0]
    if not is_known(name):
        raise ValueError(f"architecture {name!r}")
    cls = getattr(transformers, name)
    arguments = {} if settings.pop(POOLER, True) else {"add_pooling_layer": False}
    with quiet():
        model: nn.Module = cls(cls.config_class.from_dict(settings), **arguments)
    return model
