"""Masks as polygons: exact outlines along the edges of pixels, fewer corners, and one polygon for parts and holes."""

from __future__ import annotations

import numpy as np

TOLERANCE = 0.8  # pixels: more than a staircase of single pixels, 0.71, lies off its diagonal

# Steps along the edges of pixels, in turn to the right: right, down, left, up
STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
# The sides of a pixel that these steps go along: axis and shift that bring the neighbour there, and the corner, x and
# y, where the side begins. Above, to the right, below, to the left.
SIDES = ((0, 1, 0, 0), (1, -1, 1, 0), (0, -1, 1, 1), (1, 1, 0, 1))


def mask_polygons(mask: np.ndarray, *, tolerance: float = TOLERANCE, single: bool = False) -> list[np.ndarray]:
    """Return the polygons of a mask, float64 (V, 2) XY each, in pixels of the photo; none of an empty mask.

    Filling them by COCO's or the even-odd rule gives the mask again, but for what the tolerance leaves out. A mask
    with holes is one polygon: a bridge without width joins each further outline to it. Formats that have no holes, as
    COCO's polygons and YOLO's labels, then keep them.

    Args:
        mask: bool (H, W).
        tolerance: how far a corner that is left out may lie from the polygon, in pixels; 0 keeps all.
        single: True for one polygon also of a mask of several parts.
    """
    rings = [_simplified(ring, tolerance) for ring in outlines(mask)]
    rings = [ring for ring in rings if len(ring) >= 3]
    if len(rings) > 1 and (single or any(_signed_area(ring) < 0 for ring in rings)):
        return [_bridged(rings)]
    return rings


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed outlines of a mask, int64 (V, 2) XY each: corners of pixels, with the object to the right.

    Outer outlines have a positive area by `_signed_area`, holes a negative one. Parts that touch at a corner are apart.
    """
    window = np.pad(np.asarray(mask, bool), 1)
    starts: list[np.ndarray] = []
    directions: list[np.ndarray] = []
    for direction, (axis, shift, corner_x, corner_y) in enumerate(SIDES):
        y, x = np.nonzero(window & ~np.roll(window, shift, axis))
        starts.append(np.column_stack([x - 1 + corner_x, y - 1 + corner_y]))
        directions.append(np.full(len(x), direction))
    start, way = np.concatenate(starts), np.concatenate(directions)
    if not len(start):
        return []
    following = _next_edges(start, way, width=window.shape[1])
    rings, seen = [], np.zeros(len(start), bool)
    order = following.tolist()
    for first in range(len(start)):
        if seen[first]:
            continue
        ring: list[int] = []
        edge = first
        while not seen[edge]:
            seen[edge] = True
            ring.append(edge)
            edge = order[edge]
        turns = way[ring] != way[np.roll(ring, 1)]
        rings.append(start[ring][turns])
    return sorted(rings, key=lambda ring: -abs(_signed_area(ring)))


def _next_edges(start: np.ndarray, direction: np.ndarray, *, width: int) -> np.ndarray:
    """Return the edge that follows each edge, int64 (N,). Where two go on, it is the one that turns right."""
    end = start + STEPS[direction]
    place, wanted = start[:, 1] * width + start[:, 0], end[:, 1] * width + end[:, 0]
    by_place = np.lexsort((direction, place))
    low = np.searchsorted(place[by_place], wanted, "left")
    high = np.searchsorted(place[by_place], wanted, "right")
    following: np.ndarray = by_place[low]
    both = np.flatnonzero(high - low == 2)
    other = by_place[low[both] + 1]
    turns_right = direction[other] == (direction[both] + 1) % len(STEPS)
    following[both] = np.where(turns_right, other, following[both])
    return following


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out corners within the tolerance (Douglas and Peucker). A ring that would vanish stays as it is."""
    from skimage.measure import approximate_polygon  # half a second, which few callers need

    if tolerance > 0:
        closed = np.concatenate([ring, ring[:1]])
        simple: np.ndarray = approximate_polygon(closed, tolerance)[:-1]  # type: ignore[no-untyped-call]
        if len(simple) >= 3:
            return simple.astype(np.float64)
    return ring.astype(np.float64)


def _bridged(rings: list[np.ndarray]) -> np.ndarray:
    """Join rings into one polygon: a bridge leads to each further ring at the nearest corners, and back again."""
    joined = rings[0]
    for ring in rings[1:]:
        distances = ((joined[:, None] - ring[None]) ** 2).sum(-1)  # (V, W)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        around = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], around, joined[here:]])
    return joined
