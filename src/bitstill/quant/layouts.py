"""Layouts of packed codes and their sizes, shared by the packer in torch and the reader without it.

Layout `bits`: a row is one little-endian stream of bits: code k occupies bits k*b to k*b+b-1, and bit i of the stream is bit
i mod 8 of byte i // 8. For b in 1, 2, 4, 8 that puts 8, 4, 2, 1 codes into each byte, the first in the lowest bits.
Layout `trits`: five ternary codes per byte, t0 + 3 t1 + 9 t2 + 27 t3 + 81 t4 (3^5 = 243 <= 256): 1.6 bits each.
Layout `bytes`: one code per byte; never the smallest by itself, but the best input for a byte-wise entropy coder.

A row begins at a byte boundary, so that an embedding can unpack single rows; unused bits at its end are zero.
"""

from __future__ import annotations

import math
from typing import Literal

Layout = Literal["bits", "trits", "bytes"]
TRITS_PER_BYTE = 5


def bits_for(levels: int) -> int:
    """Bits per code for `levels` values: ceil(log2(levels)), at least 1."""
    return max(1, math.ceil(math.log2(levels)))


def natural_layout(levels: int) -> Layout:
    """Trits for three levels, bits for any other number."""
    return "trits" if levels == 3 else "bits"


def packed_length(length: int, levels: int, layout: Layout) -> int:
    """Bytes of one packed row of `length` codes."""
    match layout:
        case "trits":
            return -(-length // TRITS_PER_BYTE)
        case "bytes":
            return length
    return -(-length * bits_for(levels) // 8)
