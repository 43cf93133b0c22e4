"""Masks as PNGs, and the overlay: the photo with the best mask of each object, and the prompts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.painting import MASK_COLOURS, draw_prompt, paint_mask
from distill.data.rle import decode_mask
from distill.errors import DistillError
from distill.files import write_errors, write_whole
from distill.prediction.answering import FoundObject
from distill.prediction.asking import ObjectPrompt

MARK_SHARE = 0.006  # half the size of a mark on the overlay, as a share of the photo's longest side


def write_pictures(photo: np.ndarray, objects: Sequence[FoundObject], out: Path, name: str) -> list[Path]:
    """Write NAME_mask_K.png of an object, white on black, or NAME_object_I_mask_K.png of several; and NAME_overlay.png.

    Args:
        photo: uint8 (H, W, 3) RGB.
        out: the directory; it is created if needed.
        name: may hold folders.
    Returns:
        the paths of all masks in order, and last the overlay's.
    Raises:
        DistillError: a file cannot be written.
    """
    paths = []
    for i, found in enumerate(objects):
        prefix = name if len(objects) == 1 else f"{name}_object_{i}"
        for k, code in enumerate(found.masks):
            paths.append(out / f"{prefix}_mask_{k}.png")
            _write_png(paths[-1], decode_mask(code).astype(bool))
    best = [decode_mask(found.masks[found.best]).astype(bool) for found in objects]
    paths.append(out / f"{name}_overlay.png")
    _write_png(paths[-1], draw_overlay(photo, best, [found.prompt for found in objects]))
    return paths


def draw_overlay(photo: np.ndarray, masks: Sequence[np.ndarray], prompts: Sequence[ObjectPrompt] = ()) -> np.ndarray:
    """Tint masks, bool (H, W) each, on a photo, uint8 (H, W, 3), each in a colour of its own, and draw the prompts.

    Returns:
        a new array, uint8 (H, W, 3).
    """
    painted = photo
    for i, mask in enumerate(masks):
        painted = paint_mask(painted, mask, MASK_COLOURS[i % len(MASK_COLOURS)])
    image = Image.fromarray(painted)
    mark = max(2.0, MARK_SHARE * max(image.size))
    for prompt in prompts:
        draw_prompt(
            image,
            box_xyxy=prompt.box_xyxy,
            points_xy=prompt.points_xy,
            labels=prompt.labels,
            click_radius=mark,
            box_width=round(mark),
        )
    return np.array(image)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with write_errors(path.parent, DistillError):
        path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_whole(path, buffer.getvalue(), raises=DistillError)
