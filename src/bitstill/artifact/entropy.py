"""Information content of codes: Shannon entropy and mean length of a Huffman code, from counts.

For reports only; files are entropy-coded by Zstandard (`artifact.coding`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence


def shannon_bits(counts: Sequence[int]) -> float:
    """Entropy in bits per symbol of symbols that occur `counts` times: -sum f log2 f."""
    whole = sum(counts)
    return -sum(n / whole * math.log2(n / whole) for n in counts if n) + 0.0 if whole else 0.0


def huffman_bits(counts: Sequence[int]) -> float:
    """Mean length in bits of a Huffman code (Huffman 1952) for symbols that occur `counts` times.

    The mean length is the sum of all internal nodes' weights over the total; a single symbol takes 1 bit.
    """
    heap = [n for n in counts if n]
    whole = sum(heap)
    if len(heap) < 2:
        return float(len(heap))
    heapq.heapify(heap)
    merged = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        merged += pair
        heapq.heappush(heap, pair)
    return merged / whole
