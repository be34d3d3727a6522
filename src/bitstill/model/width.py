"""Structured pruning: whole channels and neurons are removed, so that a network is smaller and faster in any runtime.

Dependencies between layers are analysed by Torch-Pruning (Fang et al. 2023), an optional package.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitstill.artifact.config_keys import RESIZED
from bitstill.errors import MatchError, SpecError, need_package
from bitstill.model.blocks import blocks
from bitstill.model.modes import evaluating
from bitstill.model.resize import changes, sizes


def reduce_width(
    model: nn.Module,
    run_once: Callable[[nn.Module], Any],
    fraction: float,
    *,
    keep: Collection[str],
    multiple: int = 1,
    gradients: Mapping[str, Tensor] | None = None,
) -> None:
    """Remove the least important `fraction` of each layer's output channels, in place.

    A channel is removed as a group: its filter, its parameters in norm layers, and the weights of later layers that read it. In
    a transformer, whole heads and the inner neurons of feed-forward blocks are removed; the hidden size is unchanged.

    Args:
        model: float, not compressed.
        run_once: runs the model on a small batch.
        fraction: fraction of channels to remove, 0 to below 1.
        keep: names of layers whose number of outputs is unchanged, such as the classifier.
        multiple: remaining widths are multiples of it, for hardware.
        gradients: gradients of a loss, by parameter; a group's importance is then the first-order change of the loss without
            it, the sum of |weight * gradient| (Molchanov et al. 2019; for heads and neurons of BERT, Hou et al. 2020,
            DynaBERT). None uses the magnitude of its weights.

    Raises:
        SpecError: a fraction out of range, or a model that the graph tracer cannot follow.
        MatchError: no layer can be narrowed, or one of them would have no channel left.
        MissingPackageError: without Torch-Pruning.
    """
    check_fraction(fraction, multiple)
    pruning: Any = need_package("torch_pruning", extra="all", purpose="structured pruning")
    modules = dict(model.named_modules())
    attention = attention_layers(model)
    ignored = {modules[name] for name in keep} | _residual(model, attention)
    heads = {layer: each.heads for each in attention for layer in each.layers}
    before = sizes(model)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(True)  # the tracer follows gradients
    try:
        with evaluating(model), warnings.catch_warnings():
            if ignored:  # its warning about bare parameters of a transformer (positions of a ViT) is irrelevant: they are kept
                warnings.filterwarnings("ignore", message="Unwrapped parameters")
            pruner = pruning.pruner.BasePruner(
                model,
                example_inputs=None,
                importance=_importance(pruning, model, gradients),
                pruning_ratio=fraction - _ROUNDING,
                ignored_layers=list(ignored),
                round_to=multiple if multiple > 1 else None,
                num_heads=heads,
                prune_num_heads=bool(heads),
                prune_head_dims=False,
                head_pruning_ratio=fraction - _ROUNDING,
                forward_fn=lambda network, _inputs: run_once(network),
            )
            widths = _widths(pruner)
            pruner.step()
            for each in attention:
                each.count_again()
            run_once(model)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, KeyError) as error:
        fix = "Its forward must be one that autograd can follow; prune single weights instead."
        given = f"{type(error).__name__}: {error}"
        raise SpecError("a network that can be narrowed", given=given, where=type(model).__name__, fix=fix) from error
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(flags.get(parameter, True))
            parameter.grad = None
    record = changes(before, sizes(model))
    if not record and fraction > 0:
        fix = "Remove more of them, or prune single weights."
        raise MatchError("a layer that can be narrowed", given="none", where=type(model).__name__, fix=fix)
    _check_narrower(model, widths, fraction, multiple)
    model.__dict__[RESIZED] = {**model.__dict__.get(RESIZED, {}), **record}


def _widths(pruner: Any) -> dict[nn.Module, int]:
    """Channels of every layer that the pruner narrows."""
    graph = pruner.DG
    groups = graph.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types)
    parts = [(dependency.target.module, dependency.handler) for group in groups for dependency, _ in group]
    layers = dict.fromkeys(m for m, handler in parts if isinstance(m, _NARROWED) and graph.is_out_channel_pruning_fn(handler))
    return {layer: len(layer.weight) for layer in layers}


def _check_narrower(model: nn.Module, widths: Mapping[nn.Module, int], fraction: float, multiple: int) -> None:
    """Check that every layer keeps at least one channel: Torch-Pruning would leave an emptied layer unpruned.

    Raises:
        MatchError: a layer keeps none; names the layer.
    """
    for name, module in model.named_modules():
        width = widths.get(module, 1)
        if fraction > 0 and width > 1 and isinstance(module.weight, Tensor) and len(module.weight) == width:
            of = f" in multiples of {multiple}" if multiple > 1 else ""
            raise MatchError(
                "channels (of attention, heads) left in every layer",
                given=f"{fraction:g} of {width} to be removed{of}, which leaves none",
                where=f"{type(model).__name__}, {name}",
                fix=f"Remove a smaller fraction{', or in smaller multiples' if multiple > 1 else ''}.",
            )


def _importance(pruning: Any, model: nn.Module, gradients: Mapping[str, Tensor] | None) -> Any:
    if gradients is None:
        return pruning.importance.GroupMagnitudeImportance(p=2)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(name, torch.zeros_like(parameter))
    return pruning.importance.GroupTaylorImportance()


def check_fraction(fraction: float, multiple: int) -> None:
    """Check a fraction and a multiple.

    Raises:
        SpecError: the fraction is outside [0, 1), or the multiple is below 1.
    """
    if not 0.0 <= fraction < 1.0:
        fix = "0.5 removes every other channel."
        raise SpecError("a fraction of channels from 0 to below 1", given=str(fraction), where="channels", fix=fix)
    if multiple < 1:
        raise SpecError("a multiple of at least 1", given=str(multiple), where="channels", fix="Common values are 8 and 16.")


@dataclass(frozen=True, eq=False)
class Attention:
    """An attention module with separable heads.

    Args:
        module: the attention module.
        setting: name of its attribute with the number of heads.
        layers: its query, key and value matrices, of equal width.
    """

    module: nn.Module
    setting: str
    layers: tuple[nn.Linear, ...]

    @property
    def heads(self) -> int:
        """Number of heads."""
        return int(getattr(self.module, self.setting))

    def count_again(self) -> None:
        """Update the number of heads, and their total width if stored, after the matrices have been narrowed."""
        size = int(getattr(self.module, "attention_head_size", 0) or getattr(self.module, "head_dim", 0))
        width = self.layers[0].out_features
        if size:
            setattr(self.module, self.setting, width // size)
        if hasattr(self.module, "all_head_size"):
            setattr(self.module, "all_head_size", width)  # noqa: B010 (to mypy a module's attribute is a tensor)


def attention_layers(model: nn.Module) -> list[Attention]:
    """Attention modules of a transformer with separate query, key and value matrices of equal width."""
    attention = []
    for module in model.modules():
        setting = next((name for name in _HEADS if isinstance(getattr(module, name, None), int)), None)
        layers = [getattr(module, name) for names in _MATRICES for name in names if hasattr(module, name)]
        sized = any(hasattr(module, name) for name in ("attention_head_size", "head_dim"))
        plain = len(layers) == 3 and all(isinstance(layer, nn.Linear) for layer in layers)
        if setting and sized and plain and len({layer.out_features for layer in layers}) == 1:
            attention.append(Attention(module, setting, tuple(layers)))
    return attention


_NARROWED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_ROUNDING = 1e-9
"""Subtracted from a fraction, so that 0.9 of 10 channels leaves one: 10 * (1 - 0.9) is slightly below 1."""
_HEADS = ("num_attention_heads", "n_heads", "num_heads")
_MATRICES = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))


def _residual(model: nn.Module, attention: Collection[Attention]) -> set[nn.Module]:
    """In a transformer: every layer but those of heads, and the first of each feed-forward part, found by its shape."""
    if not hasattr(model, "config") or not hasattr(model.config, "num_hidden_layers"):
        return set()
    free: set[nn.Module] = {layer for each in attention for layer in each.layers}
    for block in blocks(model).modules:
        linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
        widest = max((module.out_features for module in linear), default=0)
        free |= {m for m in linear if m.out_features == widest > m.in_features}
    return {module for module in model.modules() if module not in free and not list(module.children())}
