"""Bit packing, against numpy's packbits and plain Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitstill.quant.bitpack import pack, unpack
from bitstill.quant.layouts import bits_for, natural_layout, packed_length

LEVELS = [2, 3, 4, 5, 7, 8, 11, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256]
sizes = st.tuples(st.integers(1, 4), st.integers(1, 70))


def _codes(seed: int, size: tuple[int, int], levels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, size, dtype=np.uint8)


@pytest.mark.parametrize("levels", LEVELS)
@given(st.integers(0, 2**32), sizes)
def test_bits_are_one_little_endian_stream(levels, seed, size):
    codes, bits = _codes(seed, size, levels), bits_for(levels)
    stream = ((codes[..., None] >> np.arange(bits)) & 1).reshape(size[0], -1).astype(np.uint8)
    wanted = np.packbits(stream, axis=-1, bitorder="little")
    found = pack(torch.from_numpy(codes), levels, "bits")
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), wanted)
    assert found.shape == (size[0], packed_length(size[1], levels, "bits"))
    np.testing.assert_array_equal(unpack(found, size[1], levels, "bits").numpy(), codes)


@given(st.integers(0, 2**32), sizes)
def test_five_trits_are_one_number_in_base_three(seed, size):
    codes = _codes(seed, size, 3)
    found = pack(torch.from_numpy(codes), 3, "trits")
    assert found.shape == (size[0], math.ceil(size[1] / 5)) == (size[0], packed_length(size[1], 3, "trits"))
    for row, packed in zip(codes, found.tolist(), strict=True):
        for index, byte in enumerate(packed):
            assert byte == int("".join(str(t) for t in row[5 * index : 5 * index + 5][::-1]), 3)
    np.testing.assert_array_equal(unpack(found, size[1], 3, "trits").numpy(), codes)


@given(st.integers(0, 2**32), sizes)
def test_bytes_are_kept(seed, size):
    codes = torch.from_numpy(_codes(seed, size, 256))
    assert torch.equal(pack(codes, 256, "bytes"), codes)
    assert torch.equal(unpack(codes, size[1], 256, "bytes"), codes)
    assert packed_length(size[1], 256, "bytes") == size[1]


def test_bits_for_every_number_of_levels():
    for levels in range(2, 257):
        assert 2 ** (bits_for(levels) - 1) < levels <= 2 ** bits_for(levels)
        assert natural_layout(levels) == ("trits" if levels == 3 else "bits")
