"""BERT encoders as GGUF, the file format of llama.cpp: weights in its block types, with tokenizer and classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.config_keys import ATTENTION, RESIZED
from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError, need_package
from bitstill.exporters.ggml import TYPES, block_type, packed_blocks
from bitstill.exporters.gguf_tokenizer import add_tokenizer
from bitstill.program.encoders import check_settings
from bitstill.program.families import BERT

Array = npt.NDArray[Any]
ROUNDING = 2.0**-9
"""Largest change of a weight, relative to the largest weight: scales and offsets of 16 bits have a relative error of 2^-11."""
_GELU = ("gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh")
_TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "pooler.dense": "cls",
    "classifier": "cls.output",
}
"""llama.cpp's names of the layers of a block, and of those outside of blocks."""


@dataclass(frozen=True)
class Written:
    """A finished file.

    Args:
        types: block types by layer.
        scales: the largest relative change of a weight by rounding scales to 16 bits.
    """

    types: dict[str, str]
    scales: float


def gguf_types(archive: Archive) -> dict[str, str]:
    """Block type of each packed layer, if llama.cpp can run the network.

    Raises:
        ArtifactError: it cannot; names the reason.
    """
    config = archive.config
    kind = (config.get("architectures") or [None])[0]
    if config.get("model_type") != "bert" or kind != "BertForSequenceClassification":
        given = str(kind or config.get("architecture") or config.get("class"))
        raise _unfit("a BertForSequenceClassification", given, "config.json: architectures")
    if config.get("hidden_act") not in _GELU:
        raise _unfit("the activation gelu", str(config.get("hidden_act")), "config.json: hidden_act")
    check_settings(config, BERT)
    for key in (RESIZED, ATTENTION):
        if config.get(key):
            raise _unfit("a whole network with attention in float", "another", f"config.json: {key}")
    return {name: block_type(layer).name for name, layer in archive.layers.items() if not _kept_in_float(name)}


def write_gguf(archive: Archive, path: Path) -> Written:
    """Write the network of an artifact.

    Args:
        archive: artifact of a `BertForSequenceClassification`.
        path: path of the new file.

    Raises:
        ArtifactError: as for `gguf_types`, or the tokenizer is not WordPiece, or the written file reads differently.
        MissingPackageError: without gguf.
    """
    gguf = need_package("gguf", extra="all", purpose="writing GGUF files")
    types, config = gguf_types(archive), archive.config
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(archive.folder.resolve().name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    labels = config.get("id2label") or {}
    outputs = len(archive.tensors["classifier.bias"])
    writer.add_classifier_output_labels([str(labels.get(str(n), f"LABEL_{n}")) for n in range(outputs)])
    writer.add_token_type_count(config.get("type_vocab_size") or 1)
    add_tokenizer(writer, archive.folder / "tokenizer.json", config["vocab_size"])
    for name in types:
        kind, blocks = packed_blocks(archive, archive.layers[name])
        writer.add_tensor(f"{_name(name)}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[kind.name])
    for name, tensor in _floats(archive, types).items():
        layer, _, leaf = name.rpartition(".")
        writer.add_tensor(f"{_name(layer)}.{leaf}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(types, _compared(archive, path, types))


def _floats(archive: Archive, types: Mapping[str, str]) -> dict[str, Array]:
    """Tensors that stay in float: matrices in their stored dtype, vectors and added tables in float32."""
    tensors = {f"{name}.weight": archive.weight(name) for name in archive.layers if name not in types}
    for name, tensor in archive.leftovers.items():
        if ".input_transform." not in name:
            whole = tensor.ndim == 1 or _kept_in_float(name.removesuffix(".weight"))
            tensors[name] = tensor.astype(np.float32) if whole else tensor
    return tensors


def _kept_in_float(layer: str) -> bool:
    """Whether a tensor is the table of segments, which llama.cpp adds in float."""
    return layer.endswith("token_type_embeddings")


def _name(layer: str) -> str:
    """llama.cpp's name of a layer."""
    short = layer.removeprefix("bert.")
    if short.startswith("encoder.layer."):
        _, _, block, rest = short.split(".", 3)
        return f"blk.{block}.{_TENSORS[rest]}"
    if short not in _TENSORS:
        raise _unfit("layers of BERT", layer, "model.safetensors")
    return _TENSORS[short]


def _compared(archive: Archive, path: Path, types: Mapping[str, str]) -> float:
    """Read all weights of the file back, and return the largest relative change.

    Raises:
        ArtifactError: a weight has changed by more than the rounding of a 16-bit scale.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    stored, largest = {tensor.name: tensor for tensor in GGUFReader(path).tensors}, 0.0
    for name, kind in types.items():
        tensor, expected = stored[f"{_name(name)}.weight"], archive.weight(name)
        given = _signs(tensor.data) if kind == "Q1_0" else dequantize(tensor.data, tensor.tensor_type)
        change = np.abs(given.reshape(expected.shape) - expected).max() / max(float(np.abs(expected).max()), 1e-30)
        if not change <= ROUNDING:
            fix = "Nothing was written. This is a defect of bitstill: please report it."
            raise ArtifactError("the weights that were trained", given=f"a change by {change:.2g}", where=name, fix=fix)
        largest = max(largest, float(change))
    return largest


def _signs(data: Array) -> Array:
    """Weights of blocks of Q1_0, which gguf's reader does not support: a scale, then one bit per weight."""
    blocks = np.asarray(data).reshape(-1, 2 + TYPES[0].size // 8)
    scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    signs = np.unpackbits(blocks[:, 2:], axis=-1, bitorder="little").astype(np.float32)
    return (2 * signs - 1) * scale


def _unfit(wanted: str, given: str, where: str) -> ArtifactError:
    fix = "llama.cpp has no place for anything else; export it to onnx."
    return ArtifactError(f"{wanted} for gguf", given=given, where=where, fix=fix)
