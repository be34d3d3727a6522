"""The size of an artifact by kind of bytes, and its check against the arithmetic. MB means 10^6 bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitstill.artifact.entropy import huffman_bits, shannon_bits
from bitstill.artifact.format import WEIGHTS, LayerRecord
from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError
from bitstill.quant.granularity import Bucket
from bitstill.quant.layouts import bits_for, natural_layout, packed_length

HEADER_BASE, HEADER_PER_TENSOR = 256, 112
"""Header allowance in bytes: safetensors writes one JSON entry per tensor (plus its name) and pads to 8."""
TOLERANCE = 1.05


@dataclass(frozen=True)
class LayerSize:
    """Bytes of one packed layer by kind, and its total bits per weight.

    Args:
        coding: coding of its codes: "none", "zstd" or "bitmap" (the bitmap counts as codes).
        zeros: fraction of its weights that are exactly zero.
    """

    name: str
    quantizer: str
    weights: int
    bytes: dict[str, int]
    bits_per_weight: float
    entropy_bits: float
    coding: str
    zeros: float


@dataclass(frozen=True)
class SizeReport:
    """Sizes of an artifact.

    Args:
        file_bytes: size of `model.safetensors`.
        by_kind: bytes of codes, scales, levels, masks, leftovers and header; they add up to `file_bytes`.
        arithmetic_bytes: sum of bits x weights, scales, masks, leftovers and the header allowance.
        row_padding_bytes: unused bits at the ends of rows, in bytes; rows begin at a byte boundary.
        nominal_bits: mean over quantized weights of ceil(log2(levels)), the number papers quote.
        stored_bits: mean over quantized weights of all bits stored for them.
        float_bytes: the same network with every parameter in float32.
        paper_bytes: Polino et al.'s (2018) formula: 4 N_float + N b / 8 + 8 N / k.
        paper_huffman_bytes: the same with b replaced by the mean length of one Huffman code over all quantized weights.
        layers: one entry per quantized weight; layers that share one are named by the first of them.
        largest_leftover: name and bytes of the largest tensor that stayed in float.
    """

    file_bytes: int
    by_kind: dict[str, int]
    arithmetic_bytes: int
    row_padding_bytes: int
    nominal_bits: float
    stored_bits: float
    float_bytes: int
    paper_bytes: float
    paper_huffman_bytes: float
    layers: tuple[LayerSize, ...]
    largest_leftover: tuple[str, int] | None

    @property
    def ratio(self) -> float:
        """Compression ratio relative to float32."""
        return self.float_bytes / self.file_bytes


def size_report(archive: Archive) -> SizeReport:
    """Account for every byte of an artifact."""
    file_bytes = (archive.folder / WEIGHTS).stat().st_size
    layers = tuple(_layer_size(layer, archive) for layer in archive.stored_weights.values())
    leftovers = {name: tensor.nbytes for name, tensor in archive.leftovers.items()}
    by_kind = Counter(dict.fromkeys(("codes", "scales", "levels", "masks"), 0))
    for layer in layers:
        by_kind.update(layer.bytes)
    by_kind["leftovers"] = sum(leftovers.values())
    by_kind["header"] = file_bytes - sum(by_kind.values())
    weights = sum(layer.weights for layer in layers)
    floats = sum(tensor.size for tensor in archive.leftovers.values())
    quantized_bytes = sum(sum(layer.bytes.values()) for layer in layers)
    largest = max(leftovers.items(), key=lambda item: item[1]) if leftovers else None
    arithmetic, padding = _arithmetic_bytes(archive)
    paper, paper_huffman = _paper_bytes(archive, floats)
    return SizeReport(
        file_bytes=file_bytes,
        by_kind=dict(by_kind),
        arithmetic_bytes=arithmetic,
        row_padding_bytes=padding,
        nominal_bits=sum(_nominal(layer) * layer.weights for layer in archive.stored_weights.values()) / max(1, weights),
        stored_bits=8 * quantized_bytes / max(1, weights),
        float_bytes=4 * (weights + floats),
        paper_bytes=paper,
        paper_huffman_bytes=paper_huffman,
        layers=layers,
        largest_leftover=largest,
    )


def check_size(report: SizeReport, where: Path) -> None:
    """Check that an artifact is not larger than its arithmetic.

    Raises:
        ArtifactError: the file is more than 5 % above `arithmetic_bytes` plus `row_padding_bytes`.
    """
    bound = TOLERANCE * (report.arithmetic_bytes + report.row_padding_bytes)
    if report.file_bytes > bound:
        raise ArtifactError(
            f"at most {bound:.0f} bytes",
            given=f"{report.file_bytes} bytes",
            where=str(where),
            fix="This is a defect of bitstill: please report it with the output of `bitstill inspect --json`.",
        )


def _layer_size(layer: LayerRecord, archive: Archive) -> LayerSize:
    kinds = {"codes": "codes", "scale": "scales", "offset": "scales", "levels": "levels", "mask": "masks"}
    sizes: Counter[str] = Counter()
    for name, kind in layer.tensors().items():
        sizes[kinds[kind]] += archive.tensors[name].nbytes
    entropy = sum(shannon_bits(_counts(archive, layer, plane)) for plane in range(len(layer.planes)))
    bits = 8 * sum(sizes.values()) / layer.weights
    zeros = 1.0 - np.count_nonzero(archive.weight(layer.name)) / layer.weights
    how = layer.planes[0].coding
    return LayerSize(layer.name, layer.quantizer, layer.weights, dict(sizes), bits, entropy, how, zeros)


def _counts(archive: Archive, layer: LayerRecord, plane: int) -> list[int]:
    codes = archive.codes(layer, plane)
    counts: list[int] = np.bincount(codes.ravel(), minlength=layer.planes[plane].levels).tolist()
    return counts


def _nominal(layer: LayerRecord) -> int:
    return sum(bits_for(plane.levels) for plane in layer.planes)


def _arithmetic_bytes(archive: Archive) -> tuple[int, int]:
    """Bits x weights / 8 (ternary at 1.6 bits) + all other tensors + the header allowance; and the padding of rows."""
    header = HEADER_BASE + sum(HEADER_PER_TENSOR + len(name) for name in archive.tensors)
    codes = packed = 0.0
    others = sum(tensor.nbytes for tensor in archive.tensors.values())
    for layer in archive.stored_weights.values():
        for index, plane in enumerate(layer.planes):
            bits = 1.6 if plane.levels == 3 else bits_for(plane.levels)
            codes += bits * layer.weights / 8
            packed += layer.grid.rows * packed_length(layer.grid.length, plane.levels, natural_layout(plane.levels))
            others -= archive.tensors[layer.tensor("codes", index)].nbytes
    return round(codes) + others + header, round(packed - codes)


def _paper_bytes(archive: Archive, floats: int) -> tuple[float, float]:
    pooled: Counter[int] = Counter()
    fixed = huffman_free = 4.0 * floats
    weights = 0
    for layer in archive.stored_weights.values():
        size = layer.granularity.size if isinstance(layer.granularity, Bucket) else layer.grid.size
        overhead = 8 * layer.weights / size
        fixed += layer.weights * _nominal(layer) / 8 + overhead
        huffman_free += overhead
        weights += layer.weights * len(layer.planes)
        for plane in range(len(layer.planes)):
            pooled.update(dict(enumerate(_counts(archive, layer, plane))))
    return fixed, huffman_free + weights * huffman_bits(list(pooled.values())) / 8


def to_json(report: SizeReport) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {**asdict(report), "ratio": report.ratio}
