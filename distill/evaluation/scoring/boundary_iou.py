"""Boundary IoU: the IoU of two masks' outlines (arXiv:2103.16562). It is low for large objects with wrong edges."""

from __future__ import annotations

import math

import numpy as np

from distill.geometry import mask_window

DILATION_RATIO = 0.02  # width of the outline as a share of the photo's diagonal: the paper, section 5, and its code


def boundary_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the IoU in 0..1 of two outlines. An outline is as wide as 2 % of the photo's diagonal.

    The border of the photo counts as an edge of a mask that touches it, as in the published code. Two empty masks give
    0.

    Args:
        predicted, truth: bool (H, W) of the complete photo.
    """
    distance = outline_width(truth.shape[0], truth.shape[1])
    either = predicted | truth
    box = mask_window(either)  # neither mask has a pixel outside of it
    if box is None:
        return 0.0
    first, second = outline(predicted[box], distance), outline(truth[box], distance)
    return int((first & second).sum()) / int((first | second).sum())


def outline_width(height: int, width: int) -> int:
    """Return the width of an outline in pixels, from the mask's edge inwards, at least one."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def outline(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return the pixels of a mask, bool (H, W), that have a pixel outside it within `distance` rows and columns."""
    deep = mask
    for axis in (0, 1):
        deep = _surrounded(deep, distance, axis)
    edge: np.ndarray = mask & ~deep
    return edge


def _surrounded(mask: np.ndarray, distance: int, axis: int) -> np.ndarray:
    """Return where all pixels up to `distance` before and after are set.

    A window of twice the length is the conjunction of two windows of the simple one.
    """
    length = 2 * distance + 1
    padding = [(0, 0), (0, 0)]
    padding[axis] = (distance, distance)
    windows = np.moveaxis(np.pad(mask, padding), axis, 0)
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        windows = windows[:-step] & windows[step:]
        covered += step
    surrounded: np.ndarray = np.moveaxis(windows, 0, axis)
    return surrounded
