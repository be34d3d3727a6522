"""Placement of labels next to points without overlaps of labels, points or the frame. Pure geometry: no plotting library.

Greedy: in order of crowding, each label takes the nearest free position on growing rings around its point. Rings grow until
there is room, so that labels never overlap, however many there are; a distant label gets a leader line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

GAP = 3.0
"""Minimal distance between label and point, in the caller's unit (points of 1/72 inch)."""
STEP, DIRECTIONS = 5.0, 16


class Box(NamedTuple):
    """An axis-parallel rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two intersect in an area."""
        return self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top

    def within(self, other: Box) -> bool:
        """Whether it lies inside `other`."""
        inside = self.left >= other.left and self.right <= other.right
        return inside and self.bottom >= other.bottom and self.top <= other.top


Point = tuple[float, float]


def place_labels(
    points: Sequence[Point],
    sizes: Sequence[Point],
    frame: Box,
    lines: Sequence[tuple[Point, Point]] = (),
    radius: float = 4.0,
) -> list[Box]:
    """Place one label per point.

    Args:
        points: centres of the markers.
        sizes: width and height of each label.
        frame: box in which labels stay while there is room.
        lines: segments that labels should avoid.
        radius: radius of a marker.

    Returns:
        One box per label; none overlaps another or a marker.
    """
    reach = radius + 1
    markers = [Box(x - reach, y - reach, x + reach, y + reach) for x, y in points]
    soft = [box for line in lines for box in _along(*line)]
    placed: dict[int, Box] = {}
    for index in sorted(range(len(points)), key=lambda i: -_crowding(points, i)):
        box = _place(points[index], sizes[index], markers, list(placed.values()), soft, frame, radius)
        placed[index] = box
        line = leader(points[index], box, radius)
        soft += _along(*line) if line else []
    return [placed[index] for index in range(len(points))]


def leader(point: Point, box: Box, radius: float = 4.0) -> tuple[Point, Point] | None:
    """Line from a marker's edge to its label, or None if the label is close."""
    x = min(max(point[0], box.left), box.right)
    y = min(max(point[1], box.bottom), box.top)
    distance = math.hypot(x - point[0], y - point[1])
    if distance <= radius + 2.5 * GAP:
        return None
    share = (radius + 1) / distance
    return (point[0] + share * (x - point[0]), point[1] + share * (y - point[1])), (x, y)


def _place(point: Point, size: Point, markers: list[Box], labels: list[Box], soft: list[Box], frame: Box, radius: float) -> Box:
    limit = max(frame.right - frame.left, frame.top - frame.bottom)
    taken = markers + labels
    # Bounds, further obstacles, largest distance, and labels that a leader line must not cross.
    searches: tuple[tuple[Box | None, list[Box], float, list[Box]], ...] = (
        (frame, soft, 0.2 * limit, labels),
        (frame, [], limit, labels),
        (frame, [], limit, []),
        (None, [], math.inf, []),
    )
    for bounds, avoid, farthest, struck in searches:
        distance = radius + GAP
        while distance <= farthest:
            for box in _ring(point, size, distance):
                free = not any(box.overlaps(other) for other in taken + avoid)
                if free and (bounds is None or box.within(bounds)) and not _strikes(point, box, struck, radius):
                    return box
            distance += STEP
    raise AssertionError("rings grow for ever")


def _strikes(point: Point, box: Box, labels: list[Box], radius: float) -> bool:
    """Whether the leader line of a label at `box` would cross another label."""
    line = leader(point, box, radius)
    return line is not None and any(step.overlaps(label) for step in _along(*line) for label in labels)


def _ring(point: Point, size: Point, distance: float) -> list[Box]:
    """Boxes of `size` at `distance` from the point, in order of preference: right, above, below, left, then diagonals."""
    angles = sorted((2 * math.pi * i / DIRECTIONS for i in range(DIRECTIONS)), key=_preference)
    boxes = []
    for angle in angles:
        # Centre of the box that touches the circle of this radius in this direction.
        cosine, sine = math.cos(angle), math.sin(angle)
        x = point[0] + cosine * distance + _side(cosine) * size[0] / 2
        y = point[1] + sine * distance + _side(sine) * size[1] / 2
        boxes.append(Box(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2))
    return boxes


def _side(direction: float) -> float:
    """Shift of a box along one axis: entirely to one side of the point, or centred on it."""
    return 0.0 if abs(direction) < 0.3 else math.copysign(1.0, direction)


def _preference(angle: float) -> float:
    right, left, above, below = (math.cos(angle), -math.cos(angle), math.sin(angle), -math.sin(angle))
    return -max(right, 0.98 * above, 0.97 * below, 0.96 * left)


def _crowding(points: Sequence[Point], index: int) -> float:
    x, y = points[index]
    return sum(1 / (1 + math.hypot(x - a, y - b)) for i, (a, b) in enumerate(points) if i != index)


def _along(start: Point, end: Point) -> list[Box]:
    """Small boxes covering a segment."""
    steps = max(1, math.ceil(math.dist(start, end) / 4))
    spots = [(start[0] + (end[0] - start[0]) * i / steps, start[1] + (end[1] - start[1]) * i / steps) for i in range(steps + 1)]
    return [Box(x - 1, y - 1, x + 1, y + 1) for x, y in spots]
