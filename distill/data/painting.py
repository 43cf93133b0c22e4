"""Masks drawn on photos."""

from __future__ import annotations

import numpy as np

MASK_OPACITY = 0.55


def paint_mask(photo: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Tint the pixels of a mask with a colour.

    Args:
        photo: uint8 (H, W, 3) RGB.
        mask: bool (H, W).
        colour: RGB.
    Returns:
        a new array, uint8 (H, W, 3).
    """
    tinted = photo.astype(np.float32)
    tinted[mask] += MASK_OPACITY * (np.array(colour, np.float32) - tinted[mask])
    painted: np.ndarray = tinted.round().astype(np.uint8)
    return painted
