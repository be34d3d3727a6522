"""Linear layers in the `pack-quantized` format of compressed-tensors, which transformers and vLLM read.

Integers of 2 to 8 bits, packed densely into 32-bit words by rows, times a scale per row or group. Embeddings stay in float:
transformers does not load quantized ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.format import LayerRecord
from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError
from bitstill.program.levels import packed_bits, signed_bits, whole_levels

Array = npt.NDArray[Any]
WORD = 4
"""Bytes of the words into which rows are packed."""


def packable(archive: Archive) -> list[LayerRecord]:
    """Layers to pack: all but embeddings."""
    return [layer for layer in archive.layers.values() if layer.kind != "Embedding"]


def bits_of(layer: LayerRecord) -> int:
    """Smallest number of bits that represents a layer's levels.

    Raises:
        ArtifactError: there is none; names the layer and a fix.
    """
    if layer.kind != "Linear":
        raise _unfit("linear layers", f"a {layer.kind}", layer, "Export it to onnx.")
    if len(layer.planes) > 1:
        raise _unfit("weights of one plane", f"{len(layer.planes)} planes", layer, "Train it without splitting.")
    plane = layer.planes[0]
    if plane.first is None or plane.offset:
        given = "learned points" if plane.first is None else "levels with an offset"
        raise _unfit("whole numbers times a scale", given, layer, "Train it with Uniform(symmetric=True), Ternary or Binary.")
    if layer.grid.padding or (layer.grid.rows != layer.shape[0] and layer.grid.groups > 1):
        given = f"rows of {layer.shape[-1]} in groups of {layer.grid.size}"
        raise _unfit("scales of a row, or of groups that divide it", given, layer, "Train it with PerChannel.")
    bits = signed_bits(plane, tuple(range(2, 9)))
    assert bits is not None
    return bits


def packed_words(archive: Archive, layer: LayerRecord) -> dict[str, Array]:
    """The tensors of one layer: words int32 (rows, words), scales float32 (rows, groups), and its shape int64 (2,).

    Raises:
        ArtifactError: as for `bits_of`.
    """
    bits, rows = bits_of(layer), layer.shape[0]
    stream = packed_bits(whole_levels(archive, layer).reshape(layer.shape) + 2 ** (bits - 1), bits)
    words = np.pad(stream, ((0, 0), (0, -stream.shape[1] % WORD))).view("<i4")
    scale = archive.tensors[layer.tensor("scale")].astype(np.float32)
    return {
        f"{layer.name}.weight_packed": words,
        f"{layer.name}.weight_scale": np.ascontiguousarray(np.broadcast_to(scale, (rows, scale.shape[1]))),
        f"{layer.name}.weight_shape": np.array(layer.shape, np.int64),
    }


def unpacked_weight(tensors: Mapping[str, Array], name: str, bits: int) -> Array:
    """Weight of one layer as decoded by readers of the format, float32."""
    words, scale, shape = (tensors[f"{name}.weight_{part}"] for part in ("packed", "scale", "shape"))
    rows, width = (int(length) for length in shape)
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")[:, : width * bits]
    places = stream.reshape(rows, width, bits).astype(np.int16) << np.arange(bits, dtype=np.int16)
    levels = places.sum(-1) - 2 ** (bits - 1)
    weight: Array = levels.astype(np.float32) * np.repeat(scale, width // scale.shape[1], axis=1)
    return weight


def quantization_config(archive: Archive) -> dict[str, Any]:
    """Entry of `config.json`: a group of layers for each number of bits and group size."""
    together: dict[tuple[int, int | None], list[str]] = {}
    for layer in packable(archive):
        together.setdefault((bits_of(layer), layer.grid.size if layer.grid.groups > 1 else None), []).append(layer.name)
    groups = {}
    for place, ((bits, size), names) in enumerate(sorted(together.items(), key=str)):
        strategy = "channel" if size is None else "group"
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": True,
            "strategy": strategy,
            "group_size": size,
            "dynamic": False,
        }
        groups[f"group_{place}"] = {"targets": names, "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
    }


def _unfit(wanted: str, given: str, layer: LayerRecord, fix: str) -> ArtifactError:
    return ArtifactError(f"{wanted} for compressed-tensors", given=given, where=layer.name, fix=fix)
