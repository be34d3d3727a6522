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

from bitstill.errors import MatchError, suggest
from bitstill.surgery.blocks import blocks


@dataclass(frozen=True)
class Output:
    """What one model made of one batch.

    Args:
        logits: (batch, classes), or (batch,) for regression.
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


SCORES = "_bitstill_scores"
"""The attribute of an attention module under which its attention function finds where to leave its scores."""


@contextlib.contextmanager
def tap(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect intermediate outputs while the block runs the model.

    Args:
        model: what will run.
        names: modules by dotted name (their output, or the first element of a tuple); "hidden:i", the hidden states before the
            first (i = 0) or after the i-th repeated block; "scores:i", the attention scores before the softmax of block i,
            counted from 0, for models that were loaded through `bitstill.hf`.

    Yields:
        A dict that fills as the model runs, by name.

    Raises:
        MatchError: if a name is neither a module of `model` nor one of its blocks.
    """
    found: dict[str, Tensor] = {}

    def collect(name: str, output: object) -> None:
        value = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(value, Tensor):
            found[name] = value

    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(names):
            kind, _, rest = name.partition(":")
            receive = functools.partial(collect, name)
            if kind == "hidden":
                stack.callback(_hook_hidden(model, name, int(rest), receive))
            elif kind == "scores":
                stack.callback(_hook_scores(_block(model, name, int(rest)), receive))
            else:
                stack.callback(_hook_output(_module(model, name), receive))
        yield found


def _hook_output(module: nn.Module, receive: Callable[[object], None]) -> Callable[[], None]:
    return module.register_forward_hook(lambda _module, _args, output: receive(output)).remove


def _hook_hidden(model: nn.Module, name: str, index: int, receive: Callable[[object], None]) -> Callable[[], None]:
    if index:
        return _hook_output(_block(model, name, index - 1), receive)

    def before(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        receive(args if args else tuple(kwargs.values()))

    return _block(model, name, 0).register_forward_pre_hook(before, with_kwargs=True).remove


def _hook_scores(block: nn.Module, receive: Callable[[object], None]) -> Callable[[], None]:
    """Every module of the block learns where scores go; the one that computes attention leaves them there."""
    modules = list(block.modules())
    for module in modules:
        module.__dict__[SCORES] = receive

    def remove() -> None:
        for module in modules:
            module.__dict__.pop(SCORES, None)

    return remove


def _block(model: nn.Module, name: str, index: int) -> nn.Module:
    found = blocks(model)
    if index >= len(found):
        raise MatchError(
            f"one of the {len(found)} blocks in {found.name!r}",
            given=repr(name),
            where=type(model).__name__,
            fix="Check the layer map: hidden states are counted from 0 (before the first block), scores from 0.",
        )
    return found.modules[index]


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
