"""Selection of modules by patterns.

A pattern is a dotted module name, a shell-style glob over such names ("encoder.*", "*.query"), or a role:

    role:stem         the first layer that runs in a forward pass
    role:classifier   the last layer that runs in a forward pass

Roles are determined by running the model once, not by the order of registration: otherwise, a network that registers its
output layer first would keep the wrong one in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from bitstill.errors import MatchError, suggest
from bitstill.model.compressed_layers import is_compressed, kind_of
from bitstill.model.modes import evaluating
from bitstill.model.packed_layers import PackedEmbedding

ROLES = ("role:stem", "role:classifier")
RunOnce = Callable[[nn.Module], object]
"""Function that runs a model on a small batch of real inputs."""


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """All compressible layers of `model`, by their first name; a shared module appears once."""
    return {name: module for name, module in model.named_modules() if kind_of(module) is not None}


def select(
    model: nn.Module, targets: Sequence[str], ignore: Sequence[str] = (), run_once: RunOnce | None = None
) -> dict[str, nn.Module]:
    """The compressible layers that match `targets` and not `ignore`, in registration order.

    Args:
        model: searched recursively.
        targets: patterns or roles; every one must match a layer.
        ignore: patterns or roles; every one must match a layer, too.
        run_once: needed for roles.

    Raises:
        MatchError: a pattern matches nothing, or nothing is left after `ignore`.
    """
    layers = candidates(model)
    if not layers:
        raise MatchError(
            "a model with Linear, Embedding, Conv1d, Conv2d or Conv1D layers",
            given=type(model).__name__,
            where="prepare",
            fix="Subclasses of these layers are not touched, since their own forward would be lost.",
        )
    chosen = set().union(*(_matches(model, layers, pattern, run_once, "targets") for pattern in targets))
    for pattern in ignore:
        chosen -= _matches(model, layers, pattern, run_once, "ignore")
    if not chosen:
        raise MatchError(
            "at least one layer to compress",
            given=f"targets {list(targets)} minus ignore {list(ignore)} leave none",
            where=type(model).__name__,
            fix="Ignore fewer layers.",
        )
    return {name: module for name, module in layers.items() if name in chosen}


def first_and_last_tensor(model: nn.Module) -> tuple[str, ...]:
    """Layers whose *weight* is the first or the last parameter tensor in registration order.

    The literal rule of Polino et al.'s (2018) code, kept for comparison: in most networks the last tensor is the
    classifier's bias, so that the classifier's weight is quantized after all.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = candidates(model)
    ends = (names[0], names[-1]) if names else ()
    return tuple(dict.fromkeys(n.removesuffix(".weight") for n in ends if n.endswith(".weight") and n[:-7] in layers))


def word_embeddings(model: nn.Module) -> str | None:
    """Name of the table of word embeddings, for a model with `get_input_embeddings`; None otherwise."""
    getter = getattr(model, "get_input_embeddings", None)
    try:
        table = getter() if callable(getter) else None
    except NotImplementedError:
        return None
    if not isinstance(table, (nn.Embedding, PackedEmbedding)):
        return None
    return next((name for name, module in model.named_modules() if module is table), None)


def norms(model: nn.Module) -> tuple[str, ...]:
    """Names of the norm layers (batch, layer, group, RMS and so on): modules without children whose class is called a norm."""
    return tuple(
        name for name, module in model.named_modules() if "Norm" in type(module).__name__ and not list(module.children())
    )


def layers_in_order(model: nn.Module, run_once: RunOnce) -> list[str]:
    """Names of the compressible or compressed layers in the order in which they first run.

    Raises:
        MatchError: if none of them runs.
    """
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: order.setdefault(name))
        for name, module in model.named_modules()
        if kind_of(module) is not None or is_compressed(module)
    ]
    try:
        with evaluating(model), torch.no_grad():
            run_once(model)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise MatchError(
            "a forward pass that runs a layer", given="none ran", where=type(model).__name__, fix="Check the model's forward."
        )
    return list(order)


def _matches(model: nn.Module, layers: dict[str, nn.Module], pattern: str, run_once: RunOnce | None, setting: str) -> set[str]:
    if pattern.startswith("role:"):
        return {_by_role(model, pattern, run_once)} & set(layers)
    # A name that looks like a glob, such as the key "[0]" of a ModuleDict, still denotes its layer.
    matching = {pattern} if pattern in layers else {name for name in layers if fnmatchcase(name, pattern)}
    if not matching:
        raise MatchError(
            "a pattern that matches a compressible layer",
            given=repr(pattern),
            where=f"{setting} over {type(model).__name__}",
            fix=suggest(pattern, layers),
        )
    return matching


def _by_role(model: nn.Module, role: str, run_once: RunOnce | None) -> str:
    if role not in ROLES:
        raise MatchError("a known role", given=repr(role), where="pattern", fix=suggest(role, ROLES))
    if run_once is None:
        raise MatchError(
            "sample inputs to find the role",
            given="none",
            where=role,
            fix="Pass run_once=lambda model: model(batch) to prepare, or name the layer.",
        )
    order = layers_in_order(model, run_once)
    return order[0] if role == "role:stem" else order[-1]
