"""Structured pruning: whole channels and neurons leave, so that a network shrinks for good and any runtime gains.

Which layers must shrink together is found by Torch-Pruning (Fang et al. 2023), an optional package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from bitstill.errors import MatchError, SpecError, need_package
from bitstill.nn.modes import evaluating
from bitstill.nn.resize import KEY, changes, sizes
from bitstill.surgery.blocks import Blocks, blocks


def reduce_width(
    model: nn.Module, run_once: Callable[[nn.Module], Any], fraction: float, *, keep: Collection[str], multiple: int = 1
) -> None:
    """Remove the `fraction` of each layer's output channels whose groups of weights are smallest, in place.

    A group is everything that goes with a channel: its filter, its norm's parameters, and what later layers do with it. In a
    transformer only the neurons between the two matrices of a feed-forward part can leave: its hidden states are shared by all
    blocks, and heads stay whole.

    Args:
        model: float, not compressed.
        run_once: runs it on a small batch.
        fraction: of channels to remove, 0 to below 1.
        keep: names of layers whose outputs stay as many as they are, such as the classifier.
        multiple: widths that are left are multiples of it, as hardware likes them.

    Raises:
        SpecError: a fraction out of range, or a model that the graph tracer cannot follow.
        MatchError: no layer can be narrowed.
        MissingPackageError: without Torch-Pruning.
    """
    check_fraction(fraction, multiple)
    pruning: Any = need_package("torch_pruning", extra="all", purpose="structured pruning")
    modules = dict(model.named_modules())
    ignored = {modules[name] for name in keep} | _residual(model)
    before = sizes(model)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(True)  # the tracer follows gradients
    try:
        with evaluating(model):
            pruner = pruning.pruner.BasePruner(
                model,
                example_inputs=None,
                importance=pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=fraction,
                ignored_layers=list(ignored),
                round_to=multiple if multiple > 1 else None,
                forward_fn=lambda network, _inputs: run_once(network),
            )
            pruner.step()
            run_once(model)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, KeyError) as error:
        fix = "Its forward must be one that autograd can follow; prune single weights instead."
        given = f"{type(error).__name__}: {error}"
        raise SpecError("a network that can be narrowed", given=given, where=type(model).__name__, fix=fix) from error
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(flags.get(parameter, True))
    record = changes(before, sizes(model))
    if not record and fraction > 0:
        fix = "Remove more of them, or prune single weights."
        raise MatchError("a layer that can be narrowed", given="none", where=type(model).__name__, fix=fix)
    model.__dict__[KEY] = {**model.__dict__.get(KEY, {}), **record}


def check_fraction(fraction: float, multiple: int) -> None:
    """Refuse what no network can be narrowed by.

    Raises:
        SpecError: a fraction outside [0, 1), or a multiple below 1.
    """
    if not 0.0 <= fraction < 1.0:
        fix = "0.5 removes every other channel."
        raise SpecError("a fraction of channels from 0 to below 1", given=str(fraction), where="channels", fix=fix)
    if multiple < 1:
        raise SpecError("a multiple of at least 1", given=str(multiple), where="channels", fix="Common values are 8 and 16.")


def _residual(model: nn.Module) -> set[nn.Module]:
    """In a transformer: every layer but the first of each feed-forward part, found by its shape."""
    if not hasattr(model, "config") or not hasattr(model.config, "num_hidden_layers"):
        return set()
    found: Blocks = blocks(model)
    free: set[nn.Module] = set()
    for block in found.modules:
        linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
        widest = max((module.out_features for module in linear), default=0)
        free |= {m for m in linear if m.out_features == widest > m.in_features}
    return {module for module in model.modules() if module not in free and not list(module.children())}
