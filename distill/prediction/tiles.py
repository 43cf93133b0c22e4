"""Tiles of a large photo: each object is looked at in the smallest tile that holds it, at the photo's own resolution.

Tiles of one size overlap by half. The next size has twice the side, and the last tile is the complete photo.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distill.geometry import HW

MARGIN = 0.1  # of a tile's side: an object keeps this distance from a tile's border, so that its surroundings are seen
BORDER = 1  # pixels: a mask that comes so near to a tile's border is cut off by it


class Tile(NamedTuple):
    """A part of a photo in its pixels: left, top, right, bottom."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the tile."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def num_levels(hw: HW, side: int) -> int:
    """Return how many sizes of tiles a photo has, the complete photo included."""
    levels = 1
    while side < max(hw):
        side, levels = 2 * side, levels + 1
    return levels


def tile_of(extent_xyxy: tuple[float, float, float, float] | None, hw: HW, side: int, level: int) -> Tile | None:
    """Return the tile of a level in which a prompt lies best, or None if it is too large for the tiles of this level.

    Args:
        extent_xyxy: the smallest box around the prompt, or None for the complete photo.
        side: of the smallest tiles, in pixels.
        level: from 0, the smallest tiles, to `num_levels` - 1, the complete photo.
    """
    height, width = hw
    if level == num_levels(hw, side) - 1:
        return Tile(0, 0, width, height)
    if extent_xyxy is None:
        return None
    size = side << level
    x0, x1 = _span(extent_xyxy[0], extent_xyxy[2], width, size)
    y0, y1 = _span(extent_xyxy[1], extent_xyxy[3], height, size)
    if x0 < 0 or y0 < 0:
        return None
    return Tile(x0, y0, x1, y1)


def is_cut_off(mask: np.ndarray, tile: Tile, hw: HW) -> bool:
    """Tell whether a mask (h, w) of a tile reaches a border of the tile that is not the photo's."""
    height, width = hw
    inner = (
        (tile.y0 > 0, mask[:BORDER]),
        (tile.y1 < height, mask[-BORDER:]),
        (tile.x0 > 0, mask[:, :BORDER]),
        (tile.x1 < width, mask[:, -BORDER:]),
    )
    return any(is_inner and edge.any() for is_inner, edge in inner)


def _span(low: float, high: float, length: int, size: int) -> tuple[int, int]:
    """Return start and end of the tile along one side of the photo, or (-1, -1) if low to high does not fit into it."""
    if size >= length:
        return 0, length
    step = size // 2
    num_steps = -(-(length - size) // step)
    nearest = round(((low + high) / 2 - size / 2) / step)
    start = min(max(nearest, 0), num_steps) * step
    start = min(start, length - size)  # the last tile ends with the photo
    end, margin = start + size, MARGIN * size
    fits = (start == 0 or low >= start + margin) and (end == length or high <= end - margin)
    return (start, end) if fits else (-1, -1)
