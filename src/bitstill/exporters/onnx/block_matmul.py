"""Linear layers as `MatMulNBits`, ONNX Runtime's own operator for weights that stay packed in memory.

Codes of 2, 4 or 8 bits in blocks along a row, each with a scale; the operator quantizes inputs in the same blocks.
"""

from __future__ import annotations

import numpy as np

from bitstill.artifact.format import LayerRecord
from bitstill.artifact.reader import Archive
from bitstill.exporters.onnx.graph import Graph
from bitstill.program.levels import packed_bits, signed_bits, whole_levels

DOMAIN, EIGHT_BITS = "com.microsoft", 4
"""Domain of the operator, and its accuracy level with 8-bit inputs."""
BLOCKS = (128, 64, 32, 16)


def block_of(layer: LayerRecord) -> tuple[int, int] | None:
    """Bits and block size that represent a layer's weights; None if there are none."""
    plane = layer.planes[0]
    if layer.kind != "Linear" or len(layer.planes) > 1 or plane.first is None or plane.offset:
        return None
    if layer.grid.rows != layer.shape[0] and layer.grid.groups > 1:
        return None
    bits = signed_bits(plane, (2, 4, 8))
    size = BLOCKS[0] if layer.grid.groups == 1 else next((size for size in BLOCKS if layer.grid.size % size == 0), None)
    return None if bits is None or size is None else (bits, size)


def product(graph: Graph, archive: Archive, layer: LayerRecord, value: str, bias: str = "") -> str:
    """The layer's output for a float input (tokens, inputs), without further biases.

    Args:
        layer: a layer supported by `block_of`.
        bias: float32 (outputs,), or "".
    """
    block = block_of(layer)
    assert block is not None
    (bits, size), (rows, width) = block, layer.shape
    levels = np.pad(whole_levels(archive, layer).reshape(rows, width), ((0, 0), (0, -width % size)))
    packed = packed_bits(levels + 2 ** (bits - 1), bits).reshape(rows, levels.shape[1] // size, -1)
    scale = np.broadcast_to(archive.tensors[layer.tensor("scale")].astype(np.float32), (rows, layer.grid.groups))
    per_group = packed.shape[1] if layer.grid.groups == 1 else layer.grid.size // size
    scales = np.repeat(scale, per_group, axis=1)[:, : packed.shape[1]]
    operands = (value, graph.constant(packed), graph.constant(np.ascontiguousarray(scales)))
    rest = ("", "", bias) if bias else ()
    return graph.node(
        "MatMulNBits", *operands, *rest, domain=DOMAIN, K=width, N=rows, bits=bits, block_size=size, accuracy_level=EIGHT_BITS
    )
