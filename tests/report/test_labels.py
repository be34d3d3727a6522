from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bitstill.report.labels import Box, leader, place_labels

FRAME = Box(0, 0, 300, 200)
RADIUS = 4.0
coordinates = st.tuples(st.floats(0, 300), st.floats(0, 200))
labels = st.tuples(coordinates, st.tuples(st.floats(5, 120), st.floats(6, 14)))


@given(st.lists(labels, max_size=25))
def test_no_label_covers_another_or_a_marker(cases: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    points, sizes = [point for point, _size in cases], [size for _point, size in cases]
    boxes = place_labels(points, sizes, FRAME, list(itertools.pairwise(points)), RADIUS)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    markers = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    assert not any(box.overlaps(marker) for box in boxes for marker in markers)


@given(coordinates, st.tuples(st.floats(5, 120), st.floats(6, 14)))
def test_one_label_is_near_inside_and_of_its_size(point: tuple[float, float], size: tuple[float, float]) -> None:
    (box,) = place_labels([point], [size], FRAME)
    assert box.within(FRAME)
    assert abs(box.right - box.left - size[0]) < 1e-6
    assert abs(box.top - box.bottom - size[1]) < 1e-6
    assert leader(point, box) is None


def test_equal_points_get_different_places() -> None:
    boxes = place_labels([(150, 100)] * 12, [(40, 10)] * 12, FRAME)
    assert len(set(boxes)) == 12


def test_a_label_that_went_far_gets_a_line() -> None:
    line = leader((0, 0), Box(40, -5, 80, 5))
    assert line == ((5.0, 0.0), (40, 0))


def test_labels_avoid_lines_where_they_can() -> None:
    (right,) = place_labels([(150, 100)], [(40, 10)], FRAME)
    assert right.left > 150
    (elsewhere,) = place_labels([(150, 100)], [(40, 10)], FRAME, [((150, 100), (300, 100))])
    assert not elsewhere.overlaps(Box(150, 99, 300, 101))
