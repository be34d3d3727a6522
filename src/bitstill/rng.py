"""Random numbers as pure functions of a key, independent of earlier draws.

The state of a generator would have to be saved and restored for a killed run to continue with the same bytes, and would differ
between one process and two. Here every draw has the key (seed, stage, step, sample) instead.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def derive(*names: object) -> int:
    """Derive a seed from 0 to 2^63 - 1 from `names` (numbers and strings)."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(key: int, samples: npt.NDArray[np.int64], draws: int) -> npt.NDArray[np.float32]:
    """Uniform numbers in [0, 1) that depend only on (key, sample, draw), not on the batch of a sample.

    The finalizer of SplitMix64 (Steele, Lea, Flood 2014) applied twice, to the sample and then to the draw.

    Args:
        key: a seed from `derive`.
        samples: indices, int64 (N,).
        draws: number of draws per sample.

    Returns:
        float32 (N, draws).
    """
    with np.errstate(over="ignore"):
        state = _mix(samples.astype(np.uint64) ^ np.uint64(key))
        state = _mix(state[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
