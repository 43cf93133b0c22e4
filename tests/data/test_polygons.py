"""Polygons give their mask again when they are filled, with holes and parts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask

from distill.data.polygons import mask_polygons, outlines


def filled(polygons: list[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """Fill polygons as COCO's tools do."""
    codes = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *hw)
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def blobs(seed: int, hw: tuple[int, int] = (70, 90)) -> np.ndarray:
    noise = np.random.RandomState(seed).rand(8, 10).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize(hw[::-1], Image.Resampling.BICUBIC)) > 0.55


def ring() -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[2:18, 3:25] = True
    mask[6:12, 8:20] = False
    mask[8:10, 10:14] = True  # an island in the lake
    return mask


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("mask", [ring(), *(blobs(seed) for seed in range(6)), np.ones((5, 7), bool)])
def test_all_corners_give_the_mask_exactly(mask, single):
    polygons = mask_polygons(mask, tolerance=0, single=single)
    assert not single or len(polygons) == 1
    np.testing.assert_array_equal(filled(polygons, mask.shape), mask)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_fewer_corners_give_nearly_the_mask(seed, single):
    mask = blobs(seed, (300, 400))
    polygons = mask_polygons(mask, single=single)
    again = filled(polygons, mask.shape)
    assert (again & mask).sum() / (again | mask).sum() > 0.985
    assert sum(map(len, polygons)) < 0.5 * sum(map(len, outlines(mask)))


def test_parts_stay_parts_and_pixels_that_touch_at_a_corner_are_apart():
    mask = np.eye(3, dtype=bool)
    assert len(mask_polygons(mask)) == 3 and len(mask_polygons(mask, single=True)) == 1
    assert [len(polygon) for polygon in mask_polygons(mask)] == [4, 4, 4]


def test_an_even_odd_fill_keeps_holes():
    mask = ring()
    (polygon,) = mask_polygons(mask, tolerance=0, single=True)
    np.testing.assert_array_equal(polygon2mask(mask.shape, polygon[:, ::-1] - 0.5), mask)


def test_an_empty_mask_has_no_polygon():
    assert mask_polygons(np.zeros((4, 5), bool)) == []
