"""Outputs of a model for its losses: logits, and intermediate outputs by module name.

Intermediate outputs are collected by forward hooks, which are removed at the end of the block, so that nothing remains in a
model that will be saved, copied or compiled.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitstill.errors import MatchError, TrainingError, suggest
from bitstill.model.attention_operands import HEADS, SCORES
from bitstill.model.blocks import Blocks, blocks


@dataclass(frozen=True)
class Output:
    """Outputs of one model for one batch.

    Args:
        logits: final output, such as (batch, classes) for classification.
        features: tapped intermediate outputs by name.
        positions: mask of unpadded positions, bool (batch, positions); None without padding.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Tensor | None = None

    def detach(self) -> Output:
        """The same values, detached from the graph."""
        return Output(self.logits.detach(), {name: value.detach() for name, value in self.features.items()}, self.positions)

    def tensors(self) -> list[Tensor]:
        """Logits, then features."""
        return [self.logits, *self.features.values()]


_ATTENTION_ATTRIBUTES = {"scores": SCORES, "heads": HEADS}
_BY_NUMBER = ("hidden", *_ATTENTION_ATTRIBUTES)


@contextlib.contextmanager
def tap(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect intermediate outputs while the block runs the model.

    Args:
        model: model to run inside the block.
        names: modules by dotted name (their output, or the first element of a tuple); "hidden:i", the hidden states before the
            first (i = 0) or after the i-th repeated block; "scores:i", the attention scores before the softmax of block i,
            counted from 0, and "heads:i", its queries, keys and values (3, batch, heads, positions, head size), both for
            models loaded by `bitstill.hf`.

    Yields:
        Outputs by name, filled while the model runs.

    Raises:
        MatchError: a name is neither a module of `model` nor one of its blocks.
        TrainingError: an output is computed without gradient while the model runs with gradients.
    """
    outputs: dict[str, Tensor] = {}
    runs_with_gradients = False

    def begin(_module: nn.Module, _args: object) -> None:
        nonlocal runs_with_gradients
        runs_with_gradients = torch.is_grad_enabled()

    def collect(name: str, output: object) -> None:
        if runs_with_gradients and not torch.is_grad_enabled():
            raise TrainingError(
                "an intermediate output with a gradient",
                given="one computed under no_grad, as in reentrant gradient checkpointing",
                where=f"tap, {name}",
                fix='Use gradient_checkpointing_kwargs={"use_reentrant": False}.',
            )
        value = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(value, Tensor):
            outputs[name] = value

    unique_names = list(dict.fromkeys(names))
    layers = blocks(model) if any(name.partition(":")[0] in _BY_NUMBER for name in unique_names) else None
    with contextlib.ExitStack() as stack:
        if unique_names:
            stack.callback(model.register_forward_pre_hook(begin).remove)
        for name in unique_names:
            kind, _, rest = name.partition(":")
            receive = functools.partial(collect, name)
            if layers is None or kind not in _BY_NUMBER:
                stack.callback(_hook_output(_module(model, name), receive))
            elif kind == "hidden":
                stack.callback(_hook_hidden(layers, name, _number(name, rest), receive))
            else:
                block = _block(layers, name, _number(name, rest))
                stack.callback(_hook_attention(block, _ATTENTION_ATTRIBUTES[kind], receive))
        yield outputs


def _hook_output(module: nn.Module, receive: Callable[[object], None]) -> Callable[[], None]:
    return module.register_forward_hook(lambda _module, _args, output: receive(output)).remove


def _hook_hidden(layers: Blocks, name: str, index: int, receive: Callable[[object], None]) -> Callable[[], None]:
    if index:
        return _hook_output(_block(layers, name, index - 1), receive)

    def before(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        receive(args if args else tuple(kwargs.values()))

    return _block(layers, name, 0).register_forward_pre_hook(before, with_kwargs=True).remove


def _hook_attention(block: nn.Module, attribute: str, receive: Callable[[object], None]) -> Callable[[], None]:
    """Set the receiver on every module of the block; the one that computes attention calls it."""
    modules = list(block.modules())
    for module in modules:
        module.__dict__[attribute] = receive

    def remove() -> None:
        for module in modules:
            module.__dict__.pop(attribute, None)

    return remove


def _block(layers: Blocks, name: str, index: int) -> nn.Module:
    if index >= len(layers):
        raise MatchError(
            f"one of the {len(layers)} blocks in {layers.name!r}",
            given=repr(name),
            where="tap",
            fix="Check the layer map: hidden states are counted from 0 (before the first block), scores from 0.",
        )
    return layers.modules[index]


def _number(name: str, rest: str) -> int:
    if not rest.isdecimal():
        raise MatchError("a layer counted from 0", given=repr(name), where="tap", fix="For example hidden:0 or scores:3.")
    return int(rest)


def _module(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        raise MatchError("a module to tap", given=repr(name), where=type(model).__name__, fix=suggest(name, modules))
    return modules[name]


def as_logits(output: object) -> Tensor:
    """Extract the logits from the output of a model: a tensor, a tuple that begins with one, or an object with `.logits`.

    Raises:
        MatchError: there are no logits.
    """
    if isinstance(output, torch.Tensor):
        return output
    value = getattr(output, "logits", None)
    if value is None and isinstance(output, (tuple, list)) and output:
        value = output[0]
    if not isinstance(value, Tensor):
        raise MatchError(
            "a tensor, a tuple that begins with one, or an object with .logits",
            given=type(output).__name__,
            where="model output",
            fix="Wrap the model so that its forward returns logits.",
        )
    return value
