"""Pictures of a validation: photo, prompt, truth, the teacher's mask and the student's, one row per photo."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from distill.data.painting import draw_prompt, paint_mask
from distill.geometry import PIXEL_MEAN, PIXEL_STD, resized_hw
from distill.prompts.types import POSITIVE

PANEL_SIZE = 192  # side in pixels of the square that each panel fits into
TITLE_HEIGHT = 14
MASK_COLOUR = (255, 64, 32)
TEXT_COLOUR = (255, 255, 255)
BACKGROUND = (24, 24, 24)
CLICK_RADIUS = 3


@dataclass
class Picture:
    """A photo with one prompt and the masks to compare.

    photo: uint8 (h, w, 3) RGB.
    box_xyxy: (4,) and click_xy: (2,), in the photo's pixels.
    masks: title -> bool (h, w), in the order of the panels.
    """

    photo: np.ndarray
    box_xyxy: np.ndarray
    click_xy: np.ndarray
    masks: dict[str, np.ndarray] = field(default_factory=dict)


def photo_from_pixels(pixels: Tensor, original_hw: tuple[int, int]) -> np.ndarray:
    """Return the photo inside an encoder's input (3, S, S): uint8 (h, w, 3) RGB, input frame, without the padding."""
    height, width = resized_hw(original_hw, pixels.shape[-1])
    inside = pixels[:, :height, :width].float().cpu().permute(1, 2, 0)  # (h, w, 3)
    image = inside * torch.tensor(PIXEL_STD) + torch.tensor(PIXEL_MEAN)
    return image.round().clamp(0, 255).to(torch.uint8).numpy()


def render_pictures(pictures: list[Picture]) -> Tensor:
    """Return a grid of panels with titles above: uint8 (3, H, W). All pictures have the same masks; one is needed."""
    titles = ["prompt", *pictures[0].masks]
    canvas = Image.new("RGB", (PANEL_SIZE * len(titles), TITLE_HEIGHT + PANEL_SIZE * len(pictures)), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((column * PANEL_SIZE + 4, 1), title, fill=TEXT_COLOUR)
    for row, picture in enumerate(pictures):
        masks = picture.masks.values()
        panels = [_prompt_panel(picture), *(_fit(paint_mask(picture.photo, mask, MASK_COLOUR)) for mask in masks)]
        for column, panel in enumerate(panels):
            canvas.paste(panel, (column * PANEL_SIZE, TITLE_HEIGHT + row * PANEL_SIZE))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)  # (3, H, W)


def _prompt_panel(picture: Picture) -> Image.Image:
    panel = _fit(picture.photo)
    draw_prompt(
        panel,
        box_xyxy=picture.box_xyxy,
        points_xy=picture.click_xy[None],
        labels=[POSITIVE],
        click_radius=CLICK_RADIUS,
        scale=PANEL_SIZE / max(picture.photo.shape[:2]),
    )
    return panel


def _fit(photo: np.ndarray) -> Image.Image:
    height, width = resized_hw(photo.shape[:2], PANEL_SIZE)
    return Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR)
