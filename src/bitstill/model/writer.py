"""From a packed model to the tensors and records of the format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from bitstill import _version
from bitstill.artifact import coding
from bitstill.artifact.files import write_file
from bitstill.artifact.format import CONFIG, FORMAT_VERSION, METADATA, WEIGHTS, LayerRecord, PlaneRecord, records_digest
from bitstill.errors import SpecError
from bitstill.model.compressed_layers import is_compressed
from bitstill.model.input_transform import InputTransform
from bitstill.model.packed_layers import PackedPlane, PackedSpec, PackedWeight, is_packed
from bitstill.model.state import stored_tensors
from bitstill.quant import bitpack
from bitstill.quant.layouts import Layout, natural_layout

LeftoverDtype = Literal["float32", "float16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Storage:
    """How an artifact is stored.

    Args:
        leftovers: dtype of everything that is not quantized.
        entropy_coding: store codes as Zstandard frames where that is smaller; "pruned" does so for layers with masks alone,
            whose zeros make it worth while. For such layers a bitmap of what is not zero and the codes of the rest are tried
            too, with any setting, where a level means zero. All are unpacked when loaded.
    """

    leftovers: LeftoverDtype = "float32"
    entropy_coding: bool | Literal["pruned"] = "pruned"

    @property
    def dtype(self) -> torch.dtype:
        """`leftovers` as torch names it."""
        return _DTYPES[self.leftovers]


def write_weights(folder: Path, packed: nn.Module, config: dict[str, Any], storage: Storage) -> None:
    """Write `model.safetensors` and `config.json` of a packed model into `folder`.

    Args:
        folder: an existing folder.
        packed: what `lifecycle.pack` returned; layers that were never compressed are stored whole.
        config: the architecture and whatever else loading needs; `quantization_config` is added.
        storage: dtype of leftovers, entropy coding.

    Raises:
        SpecError: if the model still has latent weights.
    """
    tensors, layers = collect(packed, storage)
    records = {layer.name: layer.to_json() for layer in layers}
    # One key only: safetensors writes several in random order, and a run must give the same bytes every time.
    data = safetensors_bytes(tensors, {METADATA: records_digest(records)})
    settings = {
        "quant_method": "bitstill",
        "version": FORMAT_VERSION,
        "written_by": _version.__version__,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "leftovers": storage.leftovers,
        "layers": records,
    }
    write_file(folder / WEIGHTS, data)
    text = json.dumps({**config, "quantization_config": settings}, indent=1)
    write_file(folder / CONFIG, text.encode())


def collect(packed: nn.Module, storage: Storage) -> tuple[dict[str, Tensor], list[LayerRecord]]:
    """The tensors to store, each shared one once, and a record for each packed layer.

    Raises:
        SpecError: if the model still has latent weights.
    """
    tensors: dict[str, Tensor] = {}
    layers: list[LayerRecord] = []
    inside: set[str] = set()
    for name, module in packed.named_modules():
        if is_compressed(module):
            fix = "Call pack(freeze(model)) first; a layer whose input is quantized needs a weight quantizer too."
            raise SpecError("a packed model", given="a layer with float weights", where=name, fix=fix)
        if is_packed(module):
            assert isinstance(module.packed, PackedWeight)
            layer, its_tensors = _layer(name, module, module.packed, storage)
            layers.append(layer)
            tensors |= its_tensors
            inside.add(f"{name}.packed.")
    for name, tensor in stored_tensors(packed).items():
        if not any(name.startswith(prefix) for prefix in inside):
            tensors[name] = _leftover(tensor.detach(), storage.dtype)
    return tensors, layers


def _layer(name: str, module: nn.Module, packed: PackedWeight, storage: Storage) -> tuple[LayerRecord, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    planes = []
    for index, plane in enumerate(packed.planes):
        assert isinstance(plane, PackedPlane)
        suffix = f"_{index}" if index else ""
        count = plane.levels.numel()
        first, step = _integer_levels(plane.levels)
        codes, layout, how = _store_codes(plane, packed.spec, storage)
        tensors[f"{name}.codes{suffix}"] = codes
        tensors[f"{name}.scale{suffix}"] = plane.scale.to(_DTYPES[packed.spec.scale_dtype])
        if plane.offset is not None:
            tensors[f"{name}.offset{suffix}"] = plane.offset.to(_DTYPES[packed.spec.scale_dtype])
        if first is None:
            tensors[f"{name}.levels{suffix}"] = plane.levels
        planes.append(PlaneRecord(count, first, step, plane.offset is not None, layout, how))
    if packed.mask is not None:
        tensors[f"{name}.mask"] = packed.mask
    inputs = module._modules.get("input_transform")
    record = LayerRecord(
        name=name,
        kind=packed.spec.kind,
        shape=packed.spec.shape,
        granularity=packed.spec.granularity,
        quantizer=packed.spec.name,
        scale_dtype=packed.spec.scale_dtype,
        planes=tuple(planes),
        mask=packed.mask is not None,
        input=asdict(inputs.spec) if isinstance(inputs, InputTransform) else None,
    )
    return record, {key: tensor.contiguous() for key, tensor in tensors.items()}


def _store_codes(plane: PackedPlane, spec: PackedSpec, storage: Storage) -> tuple[Tensor, Layout, str]:
    """The smallest way to store packed codes: as they are, as a bitmap and the rest, or as a frame."""
    levels = plane.levels.numel()
    layout = natural_layout(levels)
    plain: tuple[Tensor, Layout, str] = (plane.codes, layout, "none")
    if not (spec.pruned or storage.entropy_coding is True):
        return plain
    single = bitpack.unpack(plane.codes, spec.grid.length, levels, layout).contiguous()
    ways = [plain]
    zero = (plane.levels == 0).nonzero().flatten()
    if spec.pruned and plane.offset is None and zero.numel() and levels > 2:
        ways.append((_bitmap(single, int(zero), levels), natural_layout(levels - 1), "bitmap"))
    if storage.entropy_coding:
        ways.append((_frame(plane.codes), layout, "zstd"))
        ways.append((_frame(single), "bytes", "zstd"))
    return min(ways, key=lambda way: way[0].numel())


def _bitmap(single: Tensor, zero: int, levels: int) -> Tensor:
    """Where codes are not that of zero, one bit each; then those codes, counted without it, packed as one row."""
    there = (single != zero).reshape(1, -1)
    rest = single.reshape(1, -1)[there].unsqueeze(0)
    rest = rest - (rest > zero).to(torch.uint8)
    parts = (bitpack.pack(there.to(torch.uint8), 2, "bits"), bitpack.pack(rest, levels - 1, natural_layout(levels - 1)))
    return torch.cat([part.flatten() for part in parts])


def _frame(codes: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(coding.compress(codes.cpu().numpy().tobytes())), dtype=torch.uint8)


def _integer_levels(levels: Tensor) -> tuple[int | None, int]:
    """First level and step if the levels are evenly spaced integers, so that they need no tensor; else (None, 0)."""
    first, step = float(levels[0]), float(levels[1] - levels[0])
    even = torch.arange(levels.numel(), dtype=torch.float32) * step + first
    if step >= 1 and step.is_integer() and first.is_integer() and torch.equal(levels.cpu(), even):
        return int(first), int(step)
    return None, 0


def _leftover(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.cpu().contiguous()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
