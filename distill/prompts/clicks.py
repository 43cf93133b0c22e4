"""Simulated clicks: where a person would point, given the wanted mask and the predicted mask.

Clicks lie at the centre of a region: the pixel farthest from everything outside it, the border of the photo included.
Which pixel it is follows RITM (arXiv:2102.06583; its code, isegm/inference/clicker.py, _get_next_click). RITM gives the
pixel's index as the coordinate, and clicks on the pixel (0, 0) when no error is left; the coordinates here are those of
the pixel's centre, and without an error there is no click.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from distill.geometry import mask_window
from distill.prompts.types import NEGATIVE, POSITIVE

PIXEL_CENTRE = 0.5  # coordinates are continuous, (0, 0) is the outer corner of the first pixel


def first_click(mask: np.ndarray) -> np.ndarray:
    """Return the centre of a mask.

    Args:
        mask: bool (H, W), at least one pixel.
    Returns:
        float64 (2,) XY in the mask's own pixels, at the middle of a pixel. Among equals it is the first in reading
        order.
    """
    _, (row, column) = _peak(mask)
    return _xy(row, column)


def next_click(
    predicted: np.ndarray, truth: np.ndarray, *, clicked_xy: np.ndarray | None = None
) -> tuple[np.ndarray, int] | None:
    """Return the centre of the largest error: the deeper of the missed and the false region.

    At equal depth it is the false region.

    Args:
        predicted, truth: bool (H, W).
        clicked_xy: (K, 2) earlier clicks; their pixels are not clicked again.
    Returns:
        XY (2,) as in `first_click`, and POSITIVE for a missed region or NEGATIVE for a false one. None if every error
        has been clicked.
    """
    clicked = None if clicked_xy is None else np.floor(clicked_xy).astype(int)
    missed_depth, missed = _peak(truth & ~predicted, clicked)
    false_depth, false = _peak(predicted & ~truth, clicked)
    if missed_depth == false_depth == 0:
        return None
    if missed_depth > false_depth:
        return _xy(*missed), POSITIVE
    return _xy(*false), NEGATIVE


def _peak(mask: np.ndarray, clicked: np.ndarray | None = None) -> tuple[float, tuple[int, int]]:
    """Return the largest distance to the outside and its (row, column); 0 and (0, 0) for an empty mask."""
    window = mask_window(mask)
    if window is None:
        return 0.0, (0, 0)
    top, left = window[0].start, window[1].start
    box = mask[window]
    # One pixel of outside around the box is enough: the rest of the outside is not nearer.
    depth = distance_transform_edt(np.pad(box, 1))[1:-1, 1:-1]
    if clicked is not None:
        x, y = clicked[:, 0] - left, clicked[:, 1] - top
        inside = (x >= 0) & (x < box.shape[1]) & (y >= 0) & (y < box.shape[0])
        depth[y[inside], x[inside]] = 0
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return float(depth[row, column]), (int(row + top), int(column + left))


def _xy(row: int, column: int) -> np.ndarray:
    return np.array([column + PIXEL_CENTRE, row + PIXEL_CENTRE])
