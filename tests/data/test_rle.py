from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from distill.data.rle import coverage, decode_mask, encode_mask, rle_area, rle_box_xyxy, run_lengths, to_rle
from distill.errors import DataError
from distill.geometry import mask_to_low_res


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 300, 2)
    smooth = np.add.outer(np.cumsum(rng.normal(size=height)), np.cumsum(rng.normal(size=width)))
    return smooth > np.quantile(smooth, rng.random())


@pytest.mark.parametrize("seed", range(20))
def test_codes_give_back_their_masks(seed: int) -> None:
    mask = random_mask(seed)
    rle = encode_mask(mask)
    assert np.array_equal(decode_mask(rle), mask)
    assert rle_area(rle) == mask.sum()


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_the_runs_down_the_columns(seed: int) -> None:
    mask = random_mask(seed)
    runs = run_lengths(encode_mask(mask)["counts"])
    rebuilt = np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask.shape, order="F")
    assert np.array_equal(rebuilt, mask)


def assert_same_coverage(mask: np.ndarray) -> None:
    for low_res_size in (16, 64, 256):  # reduced, and enlarged
        actual, expected = coverage(encode_mask(mask), low_res_size), mask_to_low_res(mask, low_res_size)
        assert actual.dtype == np.float32 and actual.shape == (low_res_size, low_res_size)
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_coverage_needs_no_pixels(seed: int) -> None:
    assert_same_coverage(random_mask(seed))


@pytest.mark.parametrize("hw", [(1, 1), (1, 500), (500, 1), (256, 256), (300, 257), (64, 1000)])
@pytest.mark.parametrize("first", [0, 1])
def test_coverage_of_masks_whose_runs_go_on_over_columns(hw: tuple[int, int], first: int) -> None:
    """Check full and empty photos, stripes of whole columns, and single pixels in the corners."""
    columns = np.zeros(hw, bool)
    columns[:, first::3] = True
    corners = np.zeros(hw, bool)
    corners[0, 0] = corners[-1, -1] = True
    for mask in (np.ones(hw, bool), np.zeros(hw, bool), columns, ~columns, corners, ~corners):
        assert_same_coverage(mask)


def test_coverage_with_runs_of_no_length() -> None:
    code = coco_mask.frPyObjects({"size": [20, 30], "counts": [20, 0, 0, 40, 60, 0, 20, 460]}, 20, 30)
    rle = {"size": [20, 30], "counts": code["counts"].decode()}
    np.testing.assert_allclose(coverage(rle, 8), mask_to_low_res(decode_mask(rle), 8), atol=1e-6)


def test_boxes_end_after_the_last_pixel(box_mask) -> None:
    assert rle_box_xyxy(encode_mask(box_mask((30, 40), 3, 10, 5, 25))) == (5, 3, 25, 10)


def test_all_three_forms_give_the_same_mask(box_mask) -> None:
    mask = box_mask((30, 40), 3, 10, 5, 25)
    compressed = encode_mask(mask)
    uncompressed = {"size": [30, 40], "counts": run_lengths(compressed["counts"]).tolist()}
    polygon = [[5, 3, 25, 3, 25, 10, 5, 10]]
    for form in (compressed, uncompressed, polygon):
        rle = to_rle(form, (30, 40), "here")
        assert rle is not None and np.array_equal(decode_mask(rle), mask)


@pytest.mark.parametrize("form", [[], [[1, 1, 5, 5]], {"size": [30, 40], "counts": [1200]}])
def test_masks_without_pixels_are_none(form) -> None:
    assert to_rle(form, (30, 40), "here") is None


@pytest.mark.parametrize(
    "form",
    [
        [[1, 2, 3, 4, 5, 6, 7]],  # half a point
        [[0, 0, 1e6, 1e6] * 100],  # pycocotools would walk along it in fifths of a pixel
        {"size": [30, 40], "counts": [10, 20]},  # too short: pycocotools would show what was in memory
        {"size": [30, 40], "counts": "zzzz"},
        {"size": [30, 40], "counts": "0P"},  # the last number goes on behind the end
        {"size": [30, 40], "counts": "0 1"},
        {"size": [30, 40], "counts": "PPPPPPPPPPPP0"},
        {"size": [30, 40], "counts": "0N0"},  # a negative run
        {"size": [40, 30], "counts": [1200]},  # of another photo
    ],
)
def test_other_forms_are_named(form) -> None:
    with pytest.raises(DataError, match="here"):
        to_rle(form, (30, 40), "here")


def test_short_codes_are_refused_where_pycocotools_makes_something_up(box_mask) -> None:
    rle = encode_mask(box_mask((30, 40), 3, 10, 5, 25))
    rle["counts"] = rle["counts"][:-3]
    assert coco_mask.decode(rle).shape == (30, 40)
    with pytest.raises(DataError, match="damaged"):
        decode_mask(rle)
    with pytest.raises(DataError, match="damaged"):
        coverage(rle, 8)
