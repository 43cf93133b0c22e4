"""Boundary IoU: the IoU of two masks' outlines, which large objects with ragged edges do not pass.

arXiv:2103.16562.
"""

from __future__ import annotations

import math

import numpy as np

from distill.geometry import mask_window

DILATION_RATIO = 0.02  # width of the outline as a share of the photo's diagonal: the paper, section 5, and its code


def boundary_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU in 0..1 of the pixels of each mask that lie within 2 % of the diagonal of its edge.

    Beyond the photo is outside of every mask, as in the published code.

    Args:
        predicted, truth: bool (H, W) of the whole photo.
    """
    distance = outline_width(truth.shape[0], truth.shape[1])
    either = predicted | truth
    box = mask_window(either)  # nothing of either lies beyond
    if box is None:
        return 0.0
    first, second = outline(predicted[box], distance), outline(truth[box], distance)
    return int((first & second).sum()) / int((first | second).sum())


def outline_width(height: int, width: int) -> int:
    """Pixels from a mask's edge inwards, at least one."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def outline(mask: np.ndarray, distance: int) -> np.ndarray:
    """The pixels of a mask, bool (H, W), with a pixel outside it within `distance` rows and columns."""
    deep = mask
    for axis in (0, 1):
        deep = _surrounded(deep, distance, axis)
    return mask & ~deep


def _surrounded(mask: np.ndarray, distance: int, axis: int) -> np.ndarray:
    """Where all pixels up to `distance` before and after are set: windows of twice the length from two of one."""
    length = 2 * distance + 1
    padding = [(0, 0), (0, 0)]
    padding[axis] = (distance, distance)
    windows = np.moveaxis(np.pad(mask, padding), axis, 0)
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        windows = windows[:-step] & windows[step:]
        covered += step
    return np.moveaxis(windows, 0, axis)
