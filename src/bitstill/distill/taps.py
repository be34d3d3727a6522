"""What a model returns to a loss: logits, and whatever intermediate outputs the losses ask for by module name.

Intermediate outputs are read by forward hooks that are removed when the block ends, so that nothing is left behind in a model
that will be saved, copied or compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitstill.errors import MatchError, suggest


@dataclass(frozen=True)
class Output:
    """What one model made of one batch.

    Args:
        logits: (batch, classes), or (batch,) for regression.
        features: outputs of tapped modules by module name.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Output:
        """The same numbers, cut from the graph."""
        return Output(self.logits.detach(), {name: value.detach() for name, value in self.features.items()})

    def tensors(self) -> list[Tensor]:
        """Logits first, then features."""
        return [self.logits, *self.features.values()]


@contextlib.contextmanager
def tap(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the modules `names` while the block runs the model.

    Yields:
        A dict that fills as the model runs: module name -> output (the first element of a tuple).

    Raises:
        MatchError: if a name is not a module of `model`.
    """
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}

    def collect(name: str, output: object) -> None:
        value = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(value, Tensor):
            found[name] = value

    for name in names:
        if name not in modules:
            raise MatchError("a module to tap", given=repr(name), where=type(model).__name__, fix=suggest(name, modules))
    handles = [
        modules[name].register_forward_hook(lambda _module, _args, output, name=name: collect(name, output))
        for name in dict.fromkeys(names)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


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
