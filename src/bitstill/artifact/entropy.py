"""How many bits codes are worth: Shannon entropy and Huffman's mean code length, from counts alone.

Reported, never stored: what a file stores entropy-coded is coded by Zstandard (`artifact.coding`).
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

    The mean length is the sum of all internal nodes' weights over the total; one symbol alone takes 1 bit.
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
