"""A gallery of masks for a page: one line for each instance, with filters that work without a server."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from distill.pages.html import Markup

PANEL = 200  # pixels of a panel's side
CONTEXT = 1.6  # side of the shown square, in longer sides of the truth's box ...
LEAST_SHARE = 0.2  # ... but at least this share of the photo's longest side
BACKGROUND = (240, 242, 245)
BOX_COLOUR, POSITIVE_COLOUR, NEGATIVE_COLOUR = (255, 196, 0), (0, 200, 83), (213, 0, 60)
RIGHT, MISSED, EXTRA = 1, 2, 3  # of a mask's pixels, beside 0: outside of both
# RGBA of the four; blue, yellow and vermilion of Okabe and Ito
OVERLAY = ((0, 0, 0, 0), (0, 114, 178, 150), (240, 228, 66, 190), (213, 94, 0, 190))

STYLE = """
#filters { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: end; margin: .75rem 0; }
#filters label { font-size: 13px; color: #4a5868; } #filters select, #filters input { display: block; font: inherit; }
#filters input { width: 5em; } #filters output { font-size: 13px; color: #4a5868; }
.instance { border-top: 1px solid #d8dee6; padding: .5rem 0; } .instance[hidden], .panel[hidden] { display: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(96px, 200px)); gap: 6px; }
.panels div { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; } .panels b { font-size: 13px; }
.panels img { display: block; width: 100%; aspect-ratio: 1; } .crop { background: var(--crop) center / 100% 100%; }
.key i { display: inline-block; width: .9em; height: .9em; margin: 0 .4em 0 1em; vertical-align: -1px; }
"""
SCRIPT = """
(() => {
  const form = document.getElementById("filters"), list = document.getElementById("instances");
  const fields = [...form.elements].filter(field => field.name);
  const rows = [...list.children].map(row => ({row, ious: JSON.parse(row.dataset.ious)}));
  const apply = () => {
    const want = Object.fromEntries(fields.map(field => [field.name, field.value]));
    for (const item of rows) {
      const all = Object.values(item.ious);
      item.iou = want.model ? item.ious[want.model] : Math.min(...all);
      item.gap = Math.max(...all) - (want.model ? item.iou : Math.min(...all));
      item.row.hidden = item.iou === undefined || item.iou < +want.least || item.iou > +want.most
        || (want.size && item.row.dataset.size !== want.size) || item.row.dataset.prompt !== want.prompt;
      for (const panel of item.row.querySelectorAll("[data-model]"))
        panel.hidden = want.model && panel.dataset.model !== want.model;
    }
    const order = {worst: (a, b) => a.iou - b.iou, best: (a, b) => b.iou - a.iou, gap: (a, b) => b.gap - a.gap};
    list.append(...rows.sort(order[want.order]).map(item => item.row));
    form.querySelector("output").value = `${rows.filter(item => !item.row.hidden).length} shown`;
    return want;
  };
  const start = new URLSearchParams(location.hash.slice(1));
  for (const field of fields) if (start.has(field.name)) field.value = start.get(field.name);
  for (const event of ["input", "change"])
    form.addEventListener(event, () => location.replace("#" + new URLSearchParams(apply())));
  apply();
})();
"""


@dataclass(frozen=True)
class GalleryRow:
    """One instance.

    photo: uint8 (H, W, 3). prompt: {"box_xyxy": [4]} or {"points_xy": [[2]], "labels": [1]}, in its pixels.
    truth, and masks by model: bool (H, W). ious: by model. group: what was asked, size: COCO's word.
    """

    photo: np.ndarray
    prompt: dict[str, Any]
    truth: np.ndarray
    masks: dict[str, np.ndarray]
    ious: dict[str, float]
    group: str
    size: str
    caption: str


def gallery(lines: Sequence[Markup], models: Sequence[str], groups: Sequence[str]) -> Markup:
    """The filters and what `gallery_line` made of each row; the page needs STYLE."""
    sizes = [("all sizes", ""), *((size, size) for size in ("large", "medium", "small"))]
    judged = [("the worst of all", ""), *((model, model) for model in models)]
    orders = [("worst first", "worst"), ("best first", "best"), ("farthest behind first", "gap")]
    fields = (
        _select("prompt", "prompt", [(group, group) for group in groups])
        + _select("size", "size", sizes)
        + _select("model", "model", judged)
        + '<label>IoU from<input name="least" type="number" min="0" max="1" step="0.05" value="0"></label>'
        + '<label>to<input name="most" type="number" min="0" max="1" step="0.05" value="1"></label>'
        + _select("order", "order", orders)
    )
    words = ((RIGHT, "right"), (MISSED, "missed"), (EXTRA, "too much"))
    key = "".join(f'<i style="background:rgb{OVERLAY[value][:3]}"></i>{word}' for value, word in words)
    return Markup(
        f'<form id="filters" autocomplete="off">{fields}<output></output></form><p class="key quiet">Pixels:{key}</p>'
        f'<div id="instances">{"".join(lines)}</div><script>{SCRIPT}</script>'
    )


def gallery_line(row: GalleryRow) -> Markup:
    """A row as HTML: photo with prompt, truth, and each model's mask with its IoU. It keeps nothing of the row."""
    window = _window(row.truth)
    crop = _data_uri(_square(row.photo, window), "JPEG")
    photo, truth = _data_uri(_prompt_panel(row), "JPEG"), _overlay(row.truth, row.truth, window)
    panels = [
        f'<div class="panel"><img alt="photo with prompt" src="{photo}">photo, prompt</div>',
        f'<div class="panel"><img alt="truth" class="crop" src="{truth}">truth</div>',
    ]
    for model, mask in row.masks.items():
        image = f'<img alt="mask" class="crop" src="{_overlay(mask, row.truth, window)}">'
        name = html.escape(model)
        panels.append(f'<div class="panel" data-model="{name}">{image}<b>{row.ious[model]:.2f}</b> {name}</div>')
    ious = html.escape(json.dumps({model: round(iou, 4) for model, iou in row.ious.items()}))
    return Markup(
        f'<div class="instance" data-size="{row.size}" data-prompt="{html.escape(row.group)}" data-ious="{ious}" '
        f'style="--crop:url({crop})"><div class="quiet">{html.escape(row.caption)}</div>'
        f'<div class="panels">{"".join(panels)}</div></div>'
    )


def _select(name: str, title: str, options: Sequence[tuple[str, str]]) -> str:
    choices = "".join(f'<option value="{html.escape(value)}">{html.escape(text)}</option>' for text, value in options)
    return f'<label>{title}<select name="{name}">{choices}</select></label>'


def _window(truth: np.ndarray) -> tuple[int, int, int]:
    """The shown square: left, top, side in pixels of the photo; it may reach beyond a narrow photo."""
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


def _square(pixels: np.ndarray, window: tuple[int, int, int]) -> Image.Image:
    """A window of a photo at the panel's size."""
    left, top, side = window
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    canvas.paste(Image.fromarray(pixels), (-left, -top))
    return canvas.resize((PANEL, PANEL), Image.Resampling.BILINEAR)


def _overlay(mask: np.ndarray, truth: np.ndarray, window: tuple[int, int, int]) -> str:
    """Right, missed and extra pixels as a transparent PNG, over the crop that the row holds once."""
    left, top, side = window
    classes = RIGHT * (mask & truth) + MISSED * (truth & ~mask) + EXTRA * (mask & ~truth)
    canvas = Image.new("L", (side, side))
    canvas.paste(Image.fromarray(classes.astype(np.uint8)), (-left, -top))
    image = canvas.resize((PANEL, PANEL), Image.Resampling.NEAREST).convert("P")
    image.putpalette([value for colour in OVERLAY for value in colour[:3]])
    return _data_uri(image, "PNG", transparency=bytes(colour[3] for colour in OVERLAY))


def _prompt_panel(row: GalleryRow) -> Image.Image:
    """The whole photo in a square, with its prompt."""
    height, width = row.photo.shape[:2]
    side = max(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    panel, scale = _square(row.photo, (left, top, side)), PANEL / side
    draw = ImageDraw.Draw(panel)
    if "box_xyxy" in row.prompt:
        x0, y0, x1, y1 = row.prompt["box_xyxy"]
        draw.rectangle(
            ((x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale),
            outline=BOX_COLOUR,
            width=2,
        )
    for (x, y), label in zip(row.prompt.get("points_xy", ()), row.prompt.get("labels", ()), strict=True):
        centre = ((x - left) * scale, (y - top) * scale)
        draw.circle(centre, 4, fill=POSITIVE_COLOUR if label else NEGATIVE_COLOUR, outline=(255, 255, 255))
    return panel


def _data_uri(image: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 80} if form == "JPEG" else {"optimize": True}), **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
