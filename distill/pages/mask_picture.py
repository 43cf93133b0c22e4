"""One picture of several models' masks, for a README: a row for each object, a column for each model."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distill.data.painting import draw_prompt, paint_mask
from distill.pages.mask_gallery import JPEG_QUALITY, GalleryRow, cut_square, shown_window
from distill.text import line

PANEL, GAP, TITLE_HEIGHT = 220, 6, 24  # pixels
TRUTH_COLOUR, MODEL_COLOUR = (0, 158, 115), (0, 114, 178)  # green and blue of Okabe and Ito
LABEL_GROUND = (240, 242, 245)
CLICK_RADIUS = 6
INK, FONT_SIZE = (40, 44, 52), 14


def render_picture(rows: Sequence[GalleryRow]) -> bytes:
    """Return a JPEG: of each row the photo with its click, the object, and each model's mask with its IoU.

    All rows have the same models; one row is needed.
    """
    models = list(rows[0].masks)
    num_columns = 2 + len(models)
    size = (num_columns * (PANEL + GAP) - GAP, TITLE_HEIGHT + len(rows) * (PANEL + GAP) - GAP)
    canvas = Image.new("RGB", size, (255, 255, 255))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for column, title in enumerate(["click", "object", *models]):
        pen.text((column * (PANEL + GAP), 2), line(title), fill=INK, font=font)
    for number, row in enumerate(rows):
        window = shown_window(row.truth)
        panels = [_prompt_panel(row, window), _mask_panel(row.photo, row.truth, window, TRUTH_COLOUR)]
        for model in models:
            panel = _mask_panel(row.photo, row.masks[model], window, MODEL_COLOUR)
            _write_iou(panel, row.ious[model], font)
            panels.append(panel)
        for column, panel in enumerate(panels):
            canvas.paste(panel, (column * (PANEL + GAP), TITLE_HEIGHT + number * (PANEL + GAP)))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _prompt_panel(row: GalleryRow, window: tuple[int, int, int]) -> Image.Image:
    left, top, side = window
    panel = cut_square(row.photo, window, panel=PANEL)
    clicks, labels = row.prompt.get("points_xy", ()), row.prompt.get("labels", ())
    scale = PANEL / side
    draw_prompt(panel, points_xy=clicks, labels=labels, click_radius=CLICK_RADIUS, scale=scale, origin=(left, top))
    return panel


def _mask_panel(
    photo: np.ndarray, mask: np.ndarray, window: tuple[int, int, int], colour: tuple[int, int, int]
) -> Image.Image:
    return cut_square(paint_mask(photo, mask, colour), window, panel=PANEL)


def _write_iou(panel: Image.Image, iou: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    pen, text = ImageDraw.Draw(panel), f"IoU {iou:.2f}"
    left, top, right, bottom = pen.textbbox((6, 4), text, font=font)
    pen.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=LABEL_GROUND)
    pen.text((6, 4), text, fill=INK, font=font)
