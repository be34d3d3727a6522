"""Restoring a model in torch from an artifact."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from bitstill.artifact.config_keys import ATTENTION, RESIZED
from bitstill.artifact.format import WEIGHTS, LayerRecord
from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError
from bitstill.model.attention_operands import restore_transforms
from bitstill.model.compressed_layers import kind_of
from bitstill.model.input_transform import input_transform
from bitstill.model.packed_layers import PackedPlane, PackedSpec, PackedWeight, packed_layer
from bitstill.model.resize import resize
from bitstill.model.save_guard import guard_saving
from bitstill.model.state import stored_tensors
from bitstill.model.swap import swap
from bitstill.quant import bitpack
from bitstill.quant.layouts import natural_layout
from bitstill.quant.rules import QuantizeInput


def load_into(model: nn.Module, archive: Archive) -> nn.Module:
    """Turn `model`, a float network of the right architecture, into the delivered one, in place.

    Args:
        model: a float network, whose weights are discarded.
        archive: the artifact, from `artifact.reader.read`.

    Returns:
        `model`, packed, in eval mode, without gradients.

    Raises:
        ArtifactError: the architecture is not the delivered one.
    """
    resize(model, archive.config.get(RESIZED))
    restore_transforms(model, archive.config.get(ATTENTION))
    model.float().cpu()  # delivered models compute in float32 on the CPU, wherever this network was built
    swap(model, restored_layers(original_layers(model, archive), archive))
    guard_saving(model)
    _load_leftovers(model, archive)
    return model.eval().requires_grad_(False)


def original_layers(model: nn.Module, archive: Archive) -> dict[str, nn.Module]:
    """Float layers of `model` that are packed in the archive, by name.

    Raises:
        ArtifactError: one is missing, of another kind or of another shape.
    """
    modules = dict(model.named_modules())
    for name, layer in archive.layers.items():
        original = modules.get(name)
        if original is None or kind_of(original) != layer.kind:
            raise _mismatch(f"a {layer.kind} layer", "none" if original is None else type(original).__name__, name)
        if tuple(original.weight.shape) != _stored_shape(layer):
            raise _mismatch(f"a weight of shape {_stored_shape(layer)}", str(tuple(original.weight.shape)), name)
    return {name: modules[name] for name in archive.layers}


def restored_layers(originals: Mapping[str, nn.Module], archive: Archive) -> dict[nn.Module, nn.Module]:
    """Packed layers that replace `originals` (by name), with the archive's bits; shared weights stay shared."""
    weights: dict[str, PackedWeight] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, original in originals.items():
        layer = archive.layers[name]
        if layer.stored_as not in weights:
            weights[layer.stored_as] = _packed_weight(layer, archive)
        spec = None if layer.input is None else QuantizeInput(**layer.input)
        replacements[original] = packed_layer(original, layer.kind, weights[layer.stored_as], input_transform(spec))
    return replacements


def _packed_weight(layer: LayerRecord, archive: Archive) -> PackedWeight:
    planes = []
    for index, record in enumerate(layer.planes):
        layout = natural_layout(record.levels)
        if record.coding == "none" and record.layout == layout:
            codes = torch.from_numpy(archive.packed_codes(layer, index).copy())
        else:
            codes = bitpack.pack(torch.from_numpy(archive.codes(layer, index).copy()), record.levels, layout)
        scale = torch.from_numpy(archive.tensors[layer.tensor("scale", index)].copy()).float()
        offset = archive.tensors.get(layer.tensor("offset", index)) if record.offset else None
        levels = torch.from_numpy(archive.levels(layer, index).copy())
        shift = None if offset is None else torch.from_numpy(offset.copy()).float()
        planes.append(PackedPlane(codes, levels, scale, shift))
    spec = PackedSpec(layer.shape, layer.granularity, layer.quantizer, layer.scale_dtype)
    mask = torch.from_numpy(archive.tensors[layer.tensor("mask")].copy()) if layer.mask else None
    return PackedWeight(spec, planes, mask)


def leftover_slots(model: nn.Module, archive: Archive, tied: Collection[str] = ()) -> dict[str, Tensor]:
    """The float tensors of `model` that the archive's leftovers are for, by name.

    Args:
        model: with packed layers in their places.
        archive: what `reader.read` returned.
        tied: names of tensors that are only tied later to others.

    Raises:
        ArtifactError: a tensor is missing in the file or not used by the model, or of another shape.
    """
    slots = {name: t for name, t in stored_tensors(model).items() if not _belongs_to_packed(name, archive)}
    stored = archive.leftovers
    slots = {name: slot for name, slot in slots.items() if name in stored or name not in tied}
    missing, extra = sorted(slots.keys() - stored.keys()), sorted(stored.keys() - slots.keys())
    if missing or extra:
        given = f"{len(missing)} missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}"
        raise _mismatch(f"{len(slots)} float tensors that fit the model", given, "leftovers")
    for name, slot in slots.items():
        if stored[name].shape != slot.shape:
            raise _mismatch(f"shape {tuple(slot.shape)}", str(stored[name].shape), name)
    return slots


def _load_leftovers(model: nn.Module, archive: Archive) -> None:
    for name, slot in leftover_slots(model, archive).items():
        _assign(slot, torch.from_numpy(archive.leftovers[name].copy()))


def _assign(slot: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        slot.copy_(value)


def _belongs_to_packed(name: str, archive: Archive) -> bool:
    return ".packed." in name and name.split(".packed.")[0] in archive.layers


def _stored_shape(layer: LayerRecord) -> tuple[int, ...]:
    return layer.shape[::-1] if layer.kind == "TransposedLinear" else layer.shape


def _mismatch(wanted: str, given: str, name: str) -> ArtifactError:
    return ArtifactError(
        wanted,
        given=given,
        where=f"{WEIGHTS} against the model, {name}",
        fix="Load with the architecture that was delivered: its name is in config.json, or pass model=.",
    )
