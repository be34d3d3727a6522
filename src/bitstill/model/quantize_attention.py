"""Quantizing the operands of a transformer's attention products: finding the layers that compute them."""

from __future__ import annotations

import functools

from torch import nn

from bitstill.errors import MatchError
from bitstill.model.attention import AttentionTransform, add_transforms, remove_transforms
from bitstill.model.blocks import blocks
from bitstill.model.modes import evaluating
from bitstill.model.select import RunOnce
from bitstill.quant.rules import QuantizeAttention

SCORES = "_bitstill_scores"
"""The attribute of an attention layer under which its attention function finds where to leave its scores."""
HEADS = "_bitstill_heads"
"""The same for its queries, keys and values."""


def quantize_attention(model: nn.Module, spec: QuantizeAttention, run_once: RunOnce) -> tuple[str, ...]:
    """Let every attention layer of `model` quantize the operands of its two products, in place.

    Args:
        model: a transformer whose attention is computed by `hf.attention`.
        spec: how.
        run_once: runs it on a small batch, by which the layers are found, and seen to quantize.

    Returns:
        The names of the layers.

    Raises:
        MatchError: some block computes attention in a way of its own, which would go on in float without a word.
    """
    depth, names = len(blocks(model)), _attention_layers(model, run_once)
    add_transforms(model, names, spec)
    used: set[str] = set()
    transforms = {name: module for name, module in model.named_modules() if isinstance(module, AttentionTransform)}
    handles = [t.probabilities.register_forward_hook(functools.partial(_note, used, name)) for name, t in transforms.items()]
    _run(model, run_once)
    for handle in handles:
        handle.remove()
    if len(used) != depth:
        remove_transforms(model)
        fix = "It needs a model loaded by bitstill whose attention transformers dispatches (DeBERTa's is not)."
        given = f"{len(used)} of {depth} blocks do"
        raise MatchError("attention whose operands can be quantized", given=given, where=type(model).__name__, fix=fix)
    return names


def _note(used: set[str], name: str, *_arguments: object) -> None:
    used.add(name)


def _attention_layers(model: nn.Module, run_once: RunOnce) -> tuple[str, ...]:
    """The modules that offer their scores when they are asked to."""
    found: dict[str, None] = {}
    inside = {id(part) for block in blocks(model).modules for part in block.modules()}
    asked = {name: module for name, module in model.named_modules() if id(module) in inside}
    for name, module in asked.items():
        module.__dict__[SCORES] = functools.partial(_found, found, name)
    try:
        _run(model, run_once)
    finally:
        for module in asked.values():
            module.__dict__.pop(SCORES, None)
    return tuple(found)


def _found(found: dict[str, None], name: str, _scores: object) -> None:
    found[name] = None


def _run(model: nn.Module, run_once: RunOnce) -> None:
    with evaluating(model):
        run_once(model)
