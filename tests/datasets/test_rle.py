from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from distill.datasets.rle import decode_mask, encode_mask, rle_area, rle_box_xyxy, run_lengths, to_rle
from distill.errors import DataError


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
        "a string",
        None,
        [["x"] * 6],
        {"counts": [1200]},
        {"size": [30, 40], "counts": [10, 20]},  # too short: pycocotools would show what was in memory
        {"size": [30, 40], "counts": "zzzz"},
        {"size": [40, 30], "counts": [1200]},  # of another photo
        5,
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
