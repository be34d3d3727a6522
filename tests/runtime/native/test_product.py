"""The integer product on its own: exact on every available instruction set, for every number of bits and any size."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstill.runtime import structs as structures
from bitstill.runtime.held import Held
from bitstill.runtime.library import library, tiers, use_tier
from bitstill.runtime.pack_matrix import LAYOUTS, pack_lines, slices_of

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C compiler: there is no native library")


@pytest.fixture(params=["amx", "avx512", "avxvnni", "avx2", "neon", "portable"])
def tier(request):
    if request.param not in tiers():
        pytest.skip(f"this processor, or this build, has no {request.param}: not tested here")
    use_tier(request.param)
    yield request.param
    use_tier(tiers()[0])


def product(codes, rows, bits, threads=1, best=True):
    """Product of rows of signed codes (m, k) and unsigned codes (n, k) of `bits` bits, by the library: (m, n)."""
    native, (n, k) = library(), codes.shape
    padded = -(-k // structures.ALIGN) * structures.ALIGN
    matrix = structures.Matrix(outputs=n, inputs=k, padded=padded, groups=1, group=k, planes=1)
    held, plane = Held(), matrix.plane[0]
    for place, (wide, shift) in enumerate(slices_of(bits)):
        form = native.bs_best_form(None, wide) if best and bits == 1 else wide
        plane.bits[place], plane.shift[place], plane.form[place], plane.slices = wide, shift, form, place + 1
        plane.lines[place] = held.at(pack_lines(codes, form, shift, padded, native), np.uint8)
    given = np.zeros((len(rows), padded), np.int8)
    given[:, :k] = rows
    result = np.full((len(rows), -(-n // structures.PANEL) * structures.PANEL), 123, np.int32)
    native.bs_product(given.ctypes.data, len(rows), ctypes.byref(matrix), 0, result.ctypes.data, threads)
    assert not result[:, n:].any()  # outputs that pad a panel
    return result[:, :n]


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_extreme_codes_do_not_overflow(tier, bits, best):
    for value in (-128, 127):
        codes, rows = np.full((17, 17000), 2**bits - 1, np.uint8), np.full((3, 17000), value, np.int8)
        assert (product(codes, rows, bits, best=best) == value * (2**bits - 1) * 17000).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 70),
    st.integers(1, 150),
    st.integers(1, 300),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_any_size(bits, m, n, k, threads, seed):
    draw = np.random.default_rng(seed)
    codes, rows = draw.integers(0, 2**bits, (n, k)).astype(np.uint8), draw.integers(-128, 128, (m, k)).astype(np.int8)
    wanted = rows.astype(np.int64) @ codes.T.astype(np.int64)
    for name in tiers():
        use_tier(name)
        for best in (True, False):
            np.testing.assert_array_equal(product(codes, rows, bits, threads, best), wanted)
    use_tier(tiers()[0])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3, 4, 5, 16, 256]), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_rows_of_a_file_are_unpacked(levels, rows, length, seed):
    import torch

    from bitstill.quant import bitpack
    from bitstill.quant.layouts import bits_for, natural_layout

    codes = np.random.default_rng(seed).integers(0, levels, (rows, length)).astype(np.uint8)
    packed = bitpack.pack(torch.from_numpy(codes), levels, natural_layout(levels)).numpy()
    found = np.empty_like(codes)
    layout = LAYOUTS[natural_layout(levels)]
    pointers = packed.ctypes.data, rows, length, packed.shape[1], layout, bits_for(levels), found.ctypes.data
    library().bs_unpack_rows(*pointers)
    np.testing.assert_array_equal(found, codes)
