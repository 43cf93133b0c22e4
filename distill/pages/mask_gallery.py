"""A gallery of masks for a page: one row for each instance, with filters that work without a server.

A page with a gallery needs `STYLE` among its styles.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from distill.data.painting import BOX_COLOUR, NEGATIVE_COLOUR, POSITIVE_COLOUR, draw_prompt
from distill.pages.html import render

STYLE = "mask_gallery.css"
PANEL = 200  # pixels of a panel's side
CONTEXT = 1.6  # side of the shown square, in longer sides of the truth's box ...
LEAST_SHARE = 0.2  # ... but at least this share of the photo's longest side
JPEG_QUALITY = 80
CLICK_RADIUS = 4  # pixels of the panel
BACKGROUND = (126, 134, 143)  # beside a narrow photo; between a light and a dark page
RIGHT, MISSED, EXTRA = 1, 2, 3  # kinds of a mask's pixels, beside 0: outside of both mask and truth
# RGBA of the four kinds; blue, yellow and vermilion of Okabe and Ito
OVERLAY = ((0, 0, 0, 0), (0, 114, 178, 150), (240, 228, 66, 190), (213, 94, 0, 190))
KEY = ((RIGHT, "right"), (MISSED, "missed"), (EXTRA, "too much"))
# The choices of a filter: the text that is shown, and its value in mask_gallery.js.
SIZES = [("all sizes", ""), ("large", "large"), ("medium", "medium"), ("small", "small")]
ORDERS = [
    ("worst, median, best in turn", "turn"),
    ("worst first", "worst"),
    ("best first", "best"),
    ("farthest behind first", "gap"),
]
ALL_MODELS = ("the worst of all", "")


@dataclass(frozen=True)
class GalleryRow:
    """One instance with the masks of several models.

    photo: uint8 (H, W, 3) RGB.
    prompt: {"box_xyxy": [4]}, or {"points_xy": [[2], ...], "labels": [...]} with 1 on the object and 0 off it; in the
        photo's pixels.
    prompt_title: the words for this kind of prompt, which a filter chooses by.
    truth: bool (H, W). masks: by model, bool (H, W). ious: by model, each mask with the truth.
    size: COCO's word for the area of the instance.
    why: what the instance is an example of, such as "worst of small".
    """

    photo: np.ndarray
    prompt: dict[str, Any]
    truth: np.ndarray
    masks: dict[str, np.ndarray]
    ious: dict[str, float]
    prompt_title: str
    size: str
    caption: str
    why: str = ""


def render_gallery(rows: Sequence[Markup], models: Sequence[str], prompt_titles: Sequence[str]) -> Markup:
    """Return the filters of a gallery, and below them what `render_row` made of each row."""
    return render(
        "mask_gallery.html",
        rows=rows,
        prompts=[(title, title) for title in prompt_titles],
        sizes=SIZES,
        models=[ALL_MODELS, *((model, model) for model in models)],
        orders=ORDERS,
        pixels=[(word, f"rgb{OVERLAY[kind][:3]}") for kind, word in KEY],
        box=f"rgb{BOX_COLOUR}",
        clicks=[("click on the object", f"rgb{POSITIVE_COLOUR}"), ("click off it", f"rgb{NEGATIVE_COLOUR}")],
    )


def render_row(row: GalleryRow) -> Markup:
    """Return a row as HTML: the photo with its prompt, the truth, and each model's mask with its IoU."""
    window = shown_window(row.truth)
    return render(
        "mask_gallery_row.html",
        size=row.size,
        prompt=row.prompt_title,
        caption=row.caption,
        why=row.why,
        ious=json.dumps({model: round(iou, 4) for model, iou in row.ious.items()}),
        crop=_data_uri(cut_square(row.photo, window), "JPEG"),
        photo=_data_uri(_prompt_panel(row), "JPEG"),
        truth=_overlay(row.truth, row.truth, window),
        masks=[
            (model, _overlay(mask, row.truth, window), f"{row.ious[model]:.2f}") for model, mask in row.masks.items()
        ],
    )


def shown_window(truth: np.ndarray) -> tuple[int, int, int]:
    """Return the shown square: left, top, side in pixels of the photo. It may reach beyond a narrow photo."""
    height, width = truth.shape
    ys, xs = np.nonzero(truth)
    if not len(ys):
        return 0, 0, max(height, width)
    extent = max(np.ptp(ys), np.ptp(xs)) + 1
    side = int(min(max(CONTEXT * extent, LEAST_SHARE * max(height, width)), max(height, width)))

    def start(low: int, high: int, length: int) -> int:
        wanted = (low + high + 1 - side) // 2
        return (length - side) // 2 if side > length else int(np.clip(wanted, 0, length - side))

    return start(int(xs.min()), int(xs.max()), width), start(int(ys.min()), int(ys.max()), height), side


def cut_square(pixels: np.ndarray, window: tuple[int, int, int], *, panel: int = PANEL) -> Image.Image:
    """Cut a window out of a photo, uint8 (H, W, 3), and resize it to a panel of that many pixels a side."""
    left, top, side = window
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    canvas.paste(Image.fromarray(pixels), (-left, -top))
    return canvas.resize((panel, panel), Image.Resampling.BILINEAR)


def _overlay(mask: np.ndarray, truth: np.ndarray, window: tuple[int, int, int]) -> Markup:
    """Return right, missed and extra pixels as a transparent PNG. The row holds the crop below it only once."""
    left, top, side = window
    kinds = RIGHT * (mask & truth) + MISSED * (truth & ~mask) + EXTRA * (mask & ~truth)  # (H, W)
    canvas = Image.new("L", (side, side))
    canvas.paste(Image.fromarray(kinds.astype(np.uint8)), (-left, -top))
    image = canvas.resize((PANEL, PANEL), Image.Resampling.NEAREST).convert("P")
    image.putpalette([value for colour in OVERLAY for value in colour[:3]])
    return _data_uri(image, "PNG", transparency=bytes(colour[3] for colour in OVERLAY))


def _prompt_panel(row: GalleryRow) -> Image.Image:
    """Draw the complete photo in a square, with its prompt."""
    height, width = row.photo.shape[:2]
    side = max(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    panel, scale = cut_square(row.photo, (left, top, side)), PANEL / side
    draw_prompt(
        panel,
        box_xyxy=row.prompt.get("box_xyxy"),
        points_xy=row.prompt.get("points_xy", ()),
        labels=row.prompt.get("labels", ()),
        click_radius=CLICK_RADIUS,
        scale=scale,
        origin=(left, top),
    )
    return panel


def _data_uri(image: Image.Image, form: str, **options: Any) -> Markup:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": JPEG_QUALITY} if form == "JPEG" else {"optimize": True}), **options)
    return Markup(f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}")
