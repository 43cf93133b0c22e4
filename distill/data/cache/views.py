"""Views of a photo: the photo as it is, or flipped left to right. Each view has an embedding of its own.

The embedding of a flipped photo is not the flipped embedding: encoders are not symmetric, and the padding stays at the
right. So a cache holds an embedding for each view, and a student may see only the views that its cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.config.names import HFLIP, view_mistakes
from distill.errors import CacheError


def check_views(views: Sequence[str]) -> None:
    """Raise CacheError on views that no cache can hold."""
    for mistake in view_mistakes(views):
        raise CacheError(f"cache.views: {mistake}")


def view_of(image: np.ndarray, view: str) -> np.ndarray:
    """Return a view of a photo (H, W, 3)."""
    return np.ascontiguousarray(image[:, ::-1]) if view == HFLIP else image


def flip_boxes(boxes_xyxy: np.ndarray, width: int) -> np.ndarray:
    """Flip boxes (n, 4) left to right: XYXY in pixels of a photo of `width` pixels, before and after."""
    x0, y0, x1, y1 = boxes_xyxy.T  # (n,) each
    return np.stack([width - x1, y0, width - x0, y1], 1)
