"""Labels of a plot's points, placed so that none covers a marker, a whisker or another label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.pages.colours import LIGHT
from distill.text import plot_label

DISTANCES = (9.0, 17.0, 27.0, 39.0, 53.0, 70.0)  # points from the marker's centre to its label, the nearest first
# Angles in degrees, anticlockwise from the right, in the order in which they are tried.
ANGLES = (30, -30, 150, -150, 90, -90, 0, 180, 60, -60, 120, -120)
STEEP = 75  # degrees from which a label stands centred above or below its point
PADDING = 1.5  # points around a label
MARKER_RADIUS, LEADER_LENGTH, LABEL_SIZE = 5.0, 14.0, 9.0  # points; a label farther than that has a line to its marker
LONGEST_LABEL = 27  # characters of a label in a plot


class Box(NamedTuple):
    """A rectangle in points of the figure, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Return whether both share an area."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def is_inside(self, other: Box) -> bool:
        """Return whether this box leaves the other one nowhere."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


class Spot(NamedTuple):
    """Where a marker stands, in the data's units, and how far its whiskers reach. None: it has none."""

    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


def write_labels(axes: Axes, labels: Sequence[str], spots: Sequence[Spot]) -> bool:
    """Write the label of each spot where it covers nothing, with a line to its marker where that is far.

    The limits of the axes are final after it.

    Returns:
        whether the labels were written. If one has no place, none is: a few labels would mislead.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # which decides where the axes lie
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    window, per_point = axes.get_window_extent(), 72 / figure.dpi
    frame = Box(0.0, 0.0, window.width * per_point, window.height * per_point)

    def place(x: float, y: float) -> tuple[float, float]:
        """Return a place of the data in points from the lower left corner of the axes."""
        right, up = axes.transData.transform((x, y))
        return (float(right) - window.x0) * per_point, (float(up) - window.y0) * per_point

    def share(x: float, y: float) -> tuple[float, float]:
        return x / frame.right, y / frame.top

    texts = [plot_label(shortened(label)) for label in labels]
    centres = [place(spot.x, spot.y) for spot in spots]
    boxes = place_labels(
        centres, [_text_size(figure, text) for text in texts], frame, [box for s in spots for box in _covered(s, place)]
    )
    for text, (x, y), box in zip(texts, centres, boxes or [], strict=False):
        near = nearest_point(box, x, y)
        if math.dist(near, (x, y)) > LEADER_LENGTH:
            ends = zip(share(x, y), share(*near), strict=True)
            axes.plot(*ends, color=LIGHT["axis"], linewidth=0.6, transform=axes.transAxes)
        where = share(box.left + PADDING, box.bottom + PADDING)
        axes.text(*where, text, transform=axes.transAxes, size=LABEL_SIZE, ha="left", va="bottom")
    return boxes is not None


def _covered(spot: Spot, place: Callable[[float, float], tuple[float, float]]) -> list[Box]:
    """Return what a marker and its whiskers cover."""
    x, y = place(spot.x, spot.y)
    boxes = [Box(x - MARKER_RADIUS, y - MARKER_RADIUS, x + MARKER_RADIUS, y + MARKER_RADIUS)]
    if spot.x_range is not None:
        (left, _), (right, _) = (place(end, spot.y) for end in spot.x_range)
        boxes.append(Box(left, y - 1, right, y + 1))
    if spot.y_range is not None:
        (_, bottom), (_, top) = (place(spot.x, end) for end in spot.y_range)
        boxes.append(Box(x - 1, bottom, x + 1, top))
    return boxes


def _text_size(figure: Figure, text: str) -> tuple[float, float]:
    """Return width and height of a label, in points."""
    drawn = figure.text(0, 0, text, size=LABEL_SIZE)
    box = drawn.get_window_extent()
    drawn.remove()
    return box.width * 72 / figure.dpi, box.height * 72 / figure.dpi


def shortened(label: str) -> str:
    """Return a label for a plot: of a long one, its beginning and its end."""
    if len(label) <= LONGEST_LABEL:
        return label
    half = (LONGEST_LABEL - 1) // 2
    return f"{label[:half]}…{label[-half:]}"


def place_labels(
    centres: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box, obstacles: Sequence[Box]
) -> list[Box] | None:
    """Find a place for each label. All lengths are in points.

    Args:
        centres: of the markers. sizes: width and height of each label.
        frame: what the labels may not leave.
        obstacles: what they may not cover, the markers included.
    Returns:
        a box for each label, which covers no obstacle and no other box; None if some label has no place.
    """
    taken = list(obstacles)
    found: dict[int, Box] = {}
    for index in sorted(range(len(centres)), key=lambda i: -_num_near(centres, i)):  # the crowded ones choose first
        for distance in DISTANCES:
            boxes = (_box(centres[index], sizes[index], distance, angle) for angle in ANGLES)
            free = (box for box in boxes if box.is_inside(frame) and not any(map(box.overlaps, taken)))
            if (box := next(free, None)) is not None:
                found[index] = box
                taken.append(box)
                break
        else:
            return None
    return [found[index] for index in range(len(centres))]


def nearest_point(box: Box, x: float, y: float) -> tuple[float, float]:
    """Return the point of a box that is nearest to another point."""
    return min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)


def _box(centre: tuple[float, float], size: tuple[float, float], distance: float, angle: int) -> Box:
    """Return the box of a label at a distance and an angle from its point."""
    (x, y), (width, height) = centre, (size[0] + 2 * PADDING, size[1] + 2 * PADDING)
    x += distance * math.cos(math.radians(angle))
    y += distance * math.sin(math.radians(angle))
    is_steep = STEEP <= abs(angle) <= 180 - STEEP
    left = x - width / 2 if is_steep else x - width if abs(angle) > 90 else x
    bottom = y - height / 2 if angle in (0, 180) else y if angle > 0 else y - height
    return Box(left, bottom, left + width, bottom + height)


def _num_near(centres: Sequence[tuple[float, float]], index: int) -> int:
    """Return how many points lie within the reach of a label."""
    x, y = centres[index]
    return sum(math.hypot(x - other_x, y - other_y) < 4 * DISTANCES[0] for other_x, other_y in centres)
