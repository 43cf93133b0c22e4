"""Masks and prompts drawn on photos: one set of colours for pages, pictures of a validation, and predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

MASK_OPACITY = 0.55
BOX_COLOUR, POSITIVE_COLOUR, NEGATIVE_COLOUR = (255, 196, 0), (0, 200, 83), (213, 0, 60)
CLICK_OUTLINE = (255, 255, 255)
BOX_WIDTH = 2  # pixels of the picture
# Of several masks on one photo, in turn: Okabe and Ito's, without black
MASK_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
)


def paint_mask(photo: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """Tint the pixels of a mask with a colour.

    Args:
        photo: uint8 (H, W, 3) RGB.
        mask: bool (H, W).
        colour: RGB.
    Returns:
        a new array, uint8 (H, W, 3).
    """
    painted: np.ndarray = photo.copy()
    inside = photo[mask].astype(np.float32)  # (M, 3)
    painted[mask] = (inside + MASK_OPACITY * (np.array(colour, np.float32) - inside)).round()
    return painted


def draw_prompt(
    picture: Image.Image,
    *,
    box_xyxy: Sequence[float] | np.ndarray | None = None,
    points_xy: Sequence[Sequence[float]] | np.ndarray = (),
    labels: Sequence[int] | np.ndarray = (),
    click_radius: float,
    box_width: int = BOX_WIDTH,
    scale: float = 1.0,
    origin: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Draw a box and clicks into a picture that shows a photo, or a part of it.

    Args:
        box_xyxy: (4,), points_xy: (K, 2), in the photo's pixels. labels: (K,), 1 on the object, 0 off it.
        click_radius, box_width: in the picture's pixels.
        scale: the picture's pixels for one of the photo's.
        origin: where the picture's corner lies on the photo, x and y in its pixels.
    """
    pen = ImageDraw.Draw(picture)
    left, top = origin
    if box_xyxy is not None:
        x0, y0, x1, y1 = (float(value) for value in box_xyxy)
        corners = ((x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale)
        pen.rectangle(corners, outline=BOX_COLOUR, width=box_width)
    for (x, y), label in zip(points_xy, labels, strict=True):
        centre = ((float(x) - left) * scale, (float(y) - top) * scale)
        pen.circle(centre, click_radius, fill=POSITIVE_COLOUR if label else NEGATIVE_COLOUR, outline=CLICK_OUTLINE)
