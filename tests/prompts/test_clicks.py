"""Clicks that a person could check with a ruler."""

from __future__ import annotations

import numpy as np
import pytest

from distill.prompts.clicks import first_click, next_click
from distill.prompts.types import NEGATIVE, POSITIVE


def rectangle(top: int, left: int, height: int, width: int, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_first_click_is_the_middle_of_a_square():
    assert first_click(rectangle(4, 10, 5, 5)).tolist() == [12.5, 6.5]


def test_the_border_of_the_photo_counts_as_outside():
    assert first_click(rectangle(0, 0, 5, 5)).tolist() == [2.5, 2.5]
    assert first_click(np.ones((5, 9), bool))[1] == 2.5


def test_first_click_avoids_a_hole():
    mask = rectangle(2, 2, 9, 9)
    mask[6, 6] = False  # the middle
    x, y = first_click(mask)
    assert mask[int(y), int(x)]


def test_first_click_lies_in_the_thicker_part():
    mask = rectangle(10, 0, 1, 30) | rectangle(8, 20, 5, 5)
    assert first_click(mask).tolist() == [22.5, 10.5]


def test_next_click_adds_the_missed_region():
    truth = rectangle(2, 2, 5, 5) | rectangle(10, 10, 7, 7)
    xy, label = next_click(rectangle(2, 2, 5, 5), truth)
    assert (xy.tolist(), label) == ([13.5, 13.5], POSITIVE)


def test_next_click_removes_the_false_region():
    truth = rectangle(2, 2, 5, 5)
    xy, label = next_click(truth | rectangle(10, 10, 7, 7), truth)
    assert (xy.tolist(), label) == ([13.5, 13.5], NEGATIVE)


@pytest.mark.parametrize(("missed", "false", "label"), [(7, 5, POSITIVE), (5, 7, NEGATIVE), (5, 5, NEGATIVE)])
def test_the_deeper_error_is_clicked_and_at_equal_depth_the_false_one(missed, false, label):
    truth, predicted = rectangle(0, 0, missed, missed), rectangle(0, 15, false, false)
    assert next_click(predicted, truth)[1] == label


def test_no_error_gives_no_click():
    mask = rectangle(2, 2, 5, 5)
    assert next_click(mask, mask) is None


def test_a_pixel_is_clicked_once():
    truth, nothing = rectangle(2, 2, 3, 3), rectangle(0, 0, 0, 0)
    first = first_click(truth)
    second, label = next_click(nothing, truth, clicked_xy=first[None])
    assert label == POSITIVE
    assert second.tolist() != first.tolist()
    one_pixel = rectangle(5, 5, 1, 1)
    assert next_click(nothing, one_pixel, clicked_xy=first_click(one_pixel)[None]) is None
