"""Group shapes, against counting."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstill.errors import SpecError
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor, grid_of

shapes = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)


@given(shapes, st.integers(1, 500))
def test_grids_cover_every_weight_once(shape, size):
    row = math.prod(shape) // shape[0]
    wanted = {
        PerTensor(): (1, 1),
        PerChannel(): (shape[0], 1),
        PerGroup(size): (shape[0], len(range(0, row, size))),
        Bucket(size): (1, len(range(0, math.prod(shape), size))),
    }
    for granularity, scale_shape in wanted.items():
        grid = grid_of(shape, granularity)
        assert grid.scale_shape == scale_shape
        assert grid.rows * grid.length == math.prod(shape)
        assert 0 <= grid.padding < grid.size
        assert grid.groups * grid.size == grid.length + grid.padding


def test_a_group_larger_than_its_row_is_the_row():
    assert grid_of((4, 10), PerGroup(64)) == grid_of((4, 10), PerChannel())
    assert grid_of((4, 10), Bucket(64)) == grid_of((4, 10), PerTensor())


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3)])
def test_a_weight_without_elements_is_refused(shape):
    for granularity in (PerTensor(), PerChannel(), PerGroup(3), Bucket(3)):
        with pytest.raises(SpecError, match="at least one dimension and one element"):
            grid_of(shape, granularity)
