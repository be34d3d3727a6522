"""The repeated blocks of a network (a transformer's layers), and layer reduction.

They are detected by structure, as the `nn.ModuleList` whose members are of one class and hold most of the parameters, so that
BERT, RoBERTa, DistilBERT, ELECTRA, DeBERTa, ViT and any other network need no table of names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from bitstill.errors import MatchError, SpecError
from bitstill.model.copies import copy_model
from bitstill.model.swap import swap

Choice = Literal["skip", "paper", "top", "bottom"]


@dataclass(frozen=True)
class Blocks:
    """The repeated blocks of a model.

    Args:
        name: dotted name of their list.
        modules: the blocks in the order of execution.
    """

    name: str
    modules: tuple[nn.Module, ...]

    def __len__(self) -> int:
        return len(self.modules)


def blocks(model: nn.Module) -> Blocks:
    """The repeated blocks of `model`.

    Raises:
        MatchError: there are none, one block runs several times (ALBERT), or there are two lists of blocks (an encoder and a
            decoder).
    """
    lists = {
        name: tuple(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(member) for member in module}) == 1
    }
    if not lists:
        raise MatchError(
            "a list of equal blocks (nn.ModuleList)",
            given="none",
            where=type(model).__name__,
            fix="Hidden states, attention scores and layer reduction need one; use losses on logits instead.",
        )
    sizes = {key: sum(p.numel() for block in members for p in block.parameters()) for key, members in lists.items()}
    name = max(lists, key=sizes.__getitem__)
    repeated = Blocks(name, lists[name])
    beside = [key for key in lists if not f"{key}.".startswith(f"{name}.") and not f"{name}.".startswith(f"{key}.")]
    rivals = [key for key in beside if len(lists[key]) > 1 and sizes[key] > sizes[name] / 4]
    if rivals:
        raise MatchError(
            "one list of blocks",
            given=f"two, {rivals[0]!r} and {name!r}",
            where=type(model).__name__,
            fix="An encoder and a decoder have no common depth to match or to reduce; use losses on logits only.",
        )
    declared = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    declared = declared if isinstance(declared, int) else len(repeated)
    different = len({id(module) for module in repeated.modules})
    if different < len(repeated) or declared != len(repeated):
        raise MatchError(
            f"{declared} different blocks",
            given=f"{different} in {name!r}",
            where=type(model).__name__,
            fix="One block that runs several times (ALBERT) has no layers to choose or to match; use losses on logits only.",
        )
    return repeated


def choose(depth: int, keep: int, choice: Choice) -> tuple[int, ...]:
    """Choose `keep` of `depth` blocks; indices are from 0.

    Args:
        depth: number of blocks.
        keep: number of blocks to keep.
        choice: "skip" takes every (depth / keep)-th, ending with the last; "paper" does the same if `keep` divides `depth`, and
            otherwise takes equal steps from neither end, so that 5 of 12 are (2, 4, 6, 8, 10) as in the tables of Wu et al.
            (2022) and not (1, 3, 6, 8, 11); "top" those nearest the output, "bottom" those nearest the input.

    Raises:
        SpecError: more blocks than there are, or none.
    """
    if not 1 <= keep <= depth:
        raise SpecError(f"1 to {depth} layers", given=str(keep), where="layers to keep", fix="The teacher has no more.")
    if choice == "top":
        return tuple(range(depth - keep, depth))
    if choice == "bottom":
        return tuple(range(keep))
    if choice == "paper" and depth % keep:
        return tuple((index + 1) * depth // (keep + 1) for index in range(keep))
    return tuple((index + 1) * depth // keep - 1 for index in range(keep))


def check_choice(layers: Sequence[int], depth: int) -> None:
    """Check a list of blocks for a model of `depth` blocks.

    Raises:
        SpecError: out of range, repeated, not ascending, or empty.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= depth:
        raise SpecError(
            f"different layers from 0 to {depth - 1} in ascending order",
            given=str(list(layers)),
            where="layers to keep",
            fix=f"The model has {depth} layers, counted from 0.",
        )


def reduced(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Copy `model` with only the blocks `layers`; everything else is kept, and a Hugging Face config is adapted.

    Args:
        model: a network with repeated blocks.
        layers: indices of the blocks to keep, ascending, from 0.

    Raises:
        SpecError: a layer out of range.
        MatchError: no blocks.
    """
    repeated = blocks(model)
    check_choice(layers, len(repeated))
    student = copy_model(model, "layer reduction")
    whole = student.get_submodule(repeated.name)
    remaining = [whole.get_submodule(str(layer)) for layer in layers]
    _check_alike([whole.get_submodule(str(place)) for place in range(len(remaining))], remaining, layers)
    swap(student, {whole: nn.ModuleList(remaining).train(whole.training)})
    _renumber(student, remaining, layers, len(repeated))
    return student


def _check_alike(places: Sequence[nn.Module], remaining: Sequence[nn.Module], layers: Sequence[int]) -> None:
    """Check that a block is built like the one it replaces, so that the config describes the model."""
    for place, (old, new) in enumerate(zip(places, remaining, strict=True)):
        new_shapes, old_shapes = ({name: tensor.shape for name, tensor in block.state_dict().items()} for block in (new, old))
        if new_shapes != old_shapes:
            odd = next(name for name in (*new_shapes, *old_shapes) if new_shapes.get(name) != old_shapes.get(name))
            raise MatchError(
                f"a block like the one it replaces ({place})",
                given=f"block {layers[place]}, which differs in {odd}",
                where="layers to keep",
                fix="Keep differently built blocks at their positions, by a list such as layers=(0, 2, 4).",
            )


def _renumber(student: nn.Module, remaining: Sequence[nn.Module], layers: Sequence[int], depth: int) -> None:
    """Update the config, and the indices stored in the blocks."""
    for place, block in enumerate(remaining):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.__dict__["layer_idx"] = place
    seen: set[int] = set()
    for module in student.modules():
        config = getattr(module, "config", None)
        if config is None or id(config) in seen:
            continue
        seen.add(id(config))
        if getattr(config, "num_hidden_layers", None) == depth:
            config.num_hidden_layers = len(layers)
        kinds = getattr(config, "layer_types", None)
        if isinstance(kinds, list) and len(kinds) == depth:
            config.layer_types = [kinds[layer] for layer in layers]
