"""Tiles hold the objects that they are chosen for, and every place of a photo has one."""

from __future__ import annotations

import numpy as np
import pytest

from distill.prediction.tiles import MARGIN, Tile, is_cut_off, num_levels, tile_of

HW = (1000, 1700)


def test_levels():
    assert [num_levels(HW, side) for side in (1700, 1699, 850, 512, 200)] == [1, 2, 2, 3, 5]
    assert tile_of((1, 2, 3, 4), HW, 512, 2) == Tile(0, 0, 1700, 1000) == tile_of(None, HW, 512, 2)
    assert tile_of(None, HW, 512, 0) is None


@pytest.mark.parametrize("level", [0, 1])
def test_a_tile_holds_its_object_with_a_margin(level):
    rng, side = np.random.default_rng(0), 300 << level
    for _ in range(500):
        x, y = rng.uniform(0, HW[1]), rng.uniform(0, HW[0])
        extent = (x, y, min(x + 0.25 * side, HW[1]), min(y + 0.25 * side, HW[0]))
        tile = tile_of(extent, HW, 300, level)
        assert tile is not None, extent
        assert (tile.x1 - tile.x0, tile.y1 - tile.y0) == (min(side, HW[1]), min(side, HW[0]))
        assert 0 <= tile.x0 < tile.x1 <= HW[1] and 0 <= tile.y0 < tile.y1 <= HW[0]
        margin = MARGIN * side
        assert tile.x0 == 0 or extent[0] >= tile.x0 + margin
        assert tile.x1 == HW[1] or extent[2] <= tile.x1 - margin
        assert tile.y0 == 0 or extent[1] >= tile.y0 + margin
        assert tile.y1 == HW[0] or extent[3] <= tile.y1 - margin


def test_an_object_that_is_too_large_goes_to_the_next_level():
    extent = (400, 300, 700, 500)
    assert tile_of(extent, HW, 300, 0) is None
    assert tile_of(extent, HW, 300, 1) is not None


def test_masks_at_the_border_of_a_tile():
    tile = Tile(0, 200, 400, 600)
    for edge, expected in (("top", True), ("bottom", True), ("left", False), ("right", True), ("none", False)):
        mask = np.zeros((400, 400), bool)
        mask[100:300, 100:300] = True
        rows = {"top": (0, 150), "bottom": (399, 150), "left": (150, 0), "right": (150, 399), "none": (150, 150)}[edge]
        mask[rows] = True
        assert is_cut_off(mask, tile, HW) is expected, edge
