"""What a model returns to a loss: logits, and whatever intermediate outputs the losses ask for by module name.

Intermediate outputs are read by forward hooks that are removed when the block ends, so that nothing is left behind in a model
that will be saved, copied or compiled.
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
    """What one model made of one batch.

    Args:
        logits: what counts of its output, such as (batch, classes) for classification.
        features: what was tapped, by name.
        positions: which positions of a padded sequence are real, bool (batch, positions); None where all are.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Tensor | None = None

    def detach(self) -> Output:
        """The same numbers, cut from the graph."""
        return Output(self.logits.detach(), {name: value.detach() for name, value in self.features.items()}, self.positions)

    def tensors(self) -> list[Tensor]:
        """Logits first, then features."""
        return [self.logits, *self.features.values()]


_LEFT_BY_ATTENTION = {"scores": SCORES, "heads": HEADS}
_BY_NUMBER = ("hidden", *_LEFT_BY_ATTENTION)


@contextlib.contextmanager
def tap(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect intermediate outputs while the block runs the model.

    Args:
        model: what will run.
        names: modules by dotted name (their output, or the first element of a tuple); "hidden:i", the hidden states before the
            first (i = 0) or after the i-th repeated block; "scores:i", the attention scores before the softmax of block i,
            counted from 0, and "heads:i", its queries, keys and values (3, batch, heads, positions, width), both for models
            that were loaded through `bitstill.hf`.

    Yields:
        A dict that fills as the model runs, by name.

    Raises:
        MatchError: if a name is neither a module of `model` nor one of its blocks.
        TrainingError: while the model runs with gradients, one of the outputs is computed without.
    """
    found: dict[str, Tensor] = {}
    runs_with_gradients = False

    def begin(_module: nn.Module, _args: object) -> None:
        nonlocal runs_with_gradients
        runs_with_gradients = torch.is_grad_enabled()

    def collect(name: str, output: object) -> None:
        if runs_with_gradients and not torch.is_grad_enabled():
            raise TrainingError(
                "an intermediate output with a gradient",
                given="one that is computed under no_grad, as reentrant gradient checkpointing does",
                where=f"tap, {name}",
                fix='Use gradient_checkpointing_kwargs={"use_reentrant": False}.',
            )
        value = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(value, Tensor):
            found[name] = value

    wanted = list(dict.fromkeys(names))
    layers = blocks(model) if any(name.partition(":")[0] in _BY_NUMBER for name in wanted) else None
    with contextlib.ExitStack() as stack:
        if wanted:
            stack.callback(model.register_forward_pre_hook(begin).remove)
        for name in wanted:
            kind, _, rest = name.partition(":")
            receive = functools.partial(collect, name)
            if layers is None or kind not in _BY_NUMBER:
                stack.callback(_hook_output(_module(model, name), receive))
            elif kind == "hidden":
                stack.callback(_hook_hidden(layers, name, _number(name, rest), receive))
            else:
                block = _block(layers, name, _number(name, rest))
                stack.callback(_hook_attention(block, _LEFT_BY_ATTENTION[kind], receive))
        yield found


def _hook_output(module: nn.Module, receive: Callable[[object], None]) -> Callable[[], None]:
    return module.register_forward_hook(lambda _module, _args, output: receive(output)).remove


def _hook_hidden(layers: Blocks, name: str, index: int, receive: Callable[[object], None]) -> Callable[[], None]:
    if index:
        return _hook_output(_block(layers, name, index - 1), receive)

    def before(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        receive(args if args else tuple(kwargs.values()))

    return _block(layers, name, 0).register_forward_pre_hook(before, with_kwargs=True).remove


def _hook_attention(block: nn.Module, attribute: str, receive: Callable[[object], None]) -> Callable[[], None]:
    """Every module of the block learns where it goes; the one that computes attention leaves it there."""
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
    """The logits in whatever a model returns: a tensor, a tuple that begins with one, or an object with `.logits`.

    Raises:
        MatchError: if there are none.
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
