"""The contents of an artifact of a model: codes, scales and masks of its packed layers, and leftovers."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn

from bitstill.artifact.writer import Array, Contents, LayerContent, PlaneContent, WeightContent
from bitstill.errors import SpecError
from bitstill.model.compressed_layers import FrozenWeight, compressed_kind, is_compressed
from bitstill.model.input_transform import InputTransform
from bitstill.model.packed_layers import PackedPlane, PackedWeight, is_packed, zeros_are_levels
from bitstill.model.state import stored_tensors
from bitstill.quant import bitpack
from bitstill.quant.layouts import natural_layout
from bitstill.quant.quantized import Quantized


def contents_of(model: nn.Module) -> Contents:
    """Contents of an artifact of `model`, which is frozen, packed or plain float.

    A frozen model stores its codes; those of a packed one are unpacked.

    Raises:
        SpecError: if the model still trains.
    """
    layers: dict[str, LayerContent] = {}
    weights: dict[int, WeightContent] = {}
    in_codes: set[int] = set()
    for name, module in model.named_modules():
        if is_compressed(module):
            kind, frozen = compressed_kind(module), module.weight_transform
            if not isinstance(frozen, FrozenWeight):
                raise SpecError("a frozen model", given="latent weights", where=name, fix="Call freeze(model) first.")
            if id(frozen.quantized) not in weights:
                weights[id(frozen.quantized)] = _of_frozen(frozen)
            weight = weights[id(frozen.quantized)]
            in_codes.add(id(module.weight))
        elif is_packed(module):
            kind, packed = module.kind, module.packed
            assert isinstance(packed, PackedWeight) and isinstance(kind, str)
            if id(packed) not in weights:
                weights[id(packed)] = _of_packed(packed)
            weight = weights[id(packed)]
            in_codes |= {id(buffer) for buffer in packed.buffers()}
        else:
            continue
        inputs = module._modules.get("input_transform")
        layers[name] = LayerContent(kind, weight, asdict(inputs.spec) if isinstance(inputs, InputTransform) else None)
    leftovers = {name: _array(tensor) for name, tensor in stored_tensors(model).items() if id(tensor) not in in_codes}
    return Contents(layers, leftovers)


def _of_frozen(frozen: FrozenWeight) -> WeightContent:
    quantized, quantizer = frozen.quantized, frozen.quantizer
    grid = quantized.grid
    planes = tuple(
        PlaneContent(
            _array(codes.reshape(grid.rows, grid.length)),
            _array(plane.levels),
            _array(plane.scale_RG),
            None if plane.offset_RG is None else _array(plane.offset_RG),
        )
        for plane, codes in zip(quantized.planes, quantized.codes(), strict=True)
    )
    return WeightContent(
        shape=tuple(quantized.shape),
        granularity=quantizer.granularity,
        quantizer=quantizer.name,
        scale_dtype=quantizer.scale_dtype,
        planes=planes,
        mask=_stored_mask(quantized),
        pruned=quantized.mask is not None,
    )


def _of_packed(packed: PackedWeight) -> WeightContent:
    spec = packed.spec
    planes = []
    for plane in packed.planes:
        assert isinstance(plane, PackedPlane)
        count = plane.levels.numel()
        codes = bitpack.unpack(plane.codes, spec.grid.length, count, natural_layout(count))
        offset = None if plane.offset is None else _array(plane.offset)
        planes.append(PlaneContent(_array(codes), _array(plane.levels), _array(plane.scale), offset))
    mask = packed.whole_mask()
    return WeightContent(
        shape=spec.shape,
        granularity=spec.granularity,
        quantizer=spec.name,
        scale_dtype=spec.scale_dtype,
        planes=tuple(planes),
        mask=None if mask is None else _array(mask),
        pruned=spec.pruned,
    )


def _stored_mask(quantized: Quantized) -> Array | None:
    return None if quantized.mask is None or zeros_are_levels(quantized) else _array(quantized.mask)


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
