"""Architectures that can be rebuilt from an artifact's `config.json`: built-in ones, and those of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitstill.artifact.bounds import check_counts, check_labels, check_numbers, weights_of
from bitstill.artifact.config_keys import ATTENTION, RESIZED
from bitstill.artifact.reader import Archive
from bitstill.data import networks as own
from bitstill.errors import need_package
from bitstill.model.attention_operands import attention_record


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """Description of the architecture in `config.json`, from which `from_architecture` rebuilds it, or a note if it cannot.

    A network narrowed by structured pruning is described by its original sizes and a record of the narrower ones; quantized
    operands of attention add a record, too.
    """
    more = {RESIZED: model.__dict__.get(RESIZED), ATTENTION: attention_record(model)}
    return {**_architecture_of(model), **{key: value for key, value in more.items() if value}}


def _architecture_of(model: nn.Module) -> dict[str, Any]:
    if type(model).__module__.startswith("transformers."):
        from bitstill.hf.configs import config_of

        config = config_of(model)
        if config is not None:
            return config
    return own.architecture_of(model)


def can_rebuild(config: dict[str, Any]) -> bool:
    """Whether `from_architecture` can rebuild the network described by `architecture_of`."""
    return "model_type" in config or config.get("architecture") is not None


def from_architecture(config: dict[str, Any]) -> nn.Module:
    """Rebuild a network from the description by `architecture_of`.

    Raises:
        ArtifactError: the architecture is neither built in nor one of transformers.
        MissingPackageError: it is one of transformers, which is not installed.
    """
    if "model_type" in config:
        need_package("transformers", extra="all", purpose="loading this architecture")
        from bitstill.hf.configs import from_config

        return from_config(config)
    return own.from_architecture(config)


def blank_network(archive: Archive) -> nn.Module:
    """The network that an artifact's `config.json` describes, with weights that mean nothing yet.

    It is built without memory first, so that numbers in a damaged file cost nothing.

    Raises:
        ArtifactError: as `from_architecture`; or it would be far larger than the weights in the file.
    """
    check_counts(archive.config, len(archive.tensors))
    check_labels(archive.config, weights_of(archive))
    with torch.device("meta"):
        outline = from_architecture(archive.config)
    check_numbers(sum(tensor.numel() for tensor in (*outline.parameters(), *outline.buffers())), archive)
    return from_architecture(archive.config)
