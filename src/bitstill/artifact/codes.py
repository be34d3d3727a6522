"""Dense packing of codes into bytes with numpy; `quant.layouts` describes the layouts.

`quant.bitpack` does the same with torch, on the model's device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.quant.layouts import TRITS_PER_BYTE, Layout, bits_for

Array = npt.NDArray[Any]
_POWERS_OF_THREE = 3 ** np.arange(TRITS_PER_BYTE, dtype=np.uint8)


def pack(codes: Array, levels: int, layout: Layout) -> Array:
    """Pack codes (rows, length), uint8, each below `levels`, into bytes (rows, `packed_length`)."""
    if layout == "bytes":
        return np.ascontiguousarray(codes)
    if layout == "trits":
        padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % TRITS_PER_BYTE)))
        digits = padded.reshape(len(codes), -1, TRITS_PER_BYTE)
        trits: Array = (digits * _POWERS_OF_THREE).sum(-1, dtype=np.uint8)
        return trits
    bits = bits_for(levels)
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(len(codes), -1)
    return np.packbits(stream, axis=-1, bitorder="little")


def unpack(packed: Array, length: int, levels: int, layout: Layout) -> Array:
    """Unpack bytes (rows, `packed_length`) into codes (rows, length), uint8, the inverse of `pack`."""
    if layout == "bytes":
        return packed
    if layout == "trits":
        digits: Array = packed[..., None] // _POWERS_OF_THREE % 3
        return digits.reshape(len(packed), -1)[:, :length]
    bits = bits_for(levels)
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[:, : length * bits]
    codes: Array = np.packbits(stream.reshape(len(packed), length, bits), axis=-1, bitorder="little")[..., 0]
    return codes
