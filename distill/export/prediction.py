"""The answer to one prompt as files: the masks, and an overlay picture of the best one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from distill.data.painting import paint_mask
from distill.errors import DistillError
from distill.files import write_errors, write_whole
from distill.models.predictor import Predictor
from distill.models.sam import PromptableModel

MASK_COLOUR = (30, 144, 255)
POSITIVE_COLOUR, NEGATIVE_COLOUR, BOX_COLOUR = (50, 205, 50), (220, 20, 60), (255, 200, 0)
MARK_SHARE = 0.006  # half the size of a mark on the overlay, as a share of the photo's longest side


@dataclass(frozen=True)
class WrittenMask:
    """A mask on disk, white on black in the photo's size.

    predicted_iou: the model's own estimate of the mask's IoU.
    area_share: the share of the photo that the mask covers.
    """

    path: Path
    predicted_iou: float
    area_share: float


@dataclass(frozen=True)
class Prediction:
    """The files of one prompt: a PNG for each mask, and the photo with the best mask by predicted IoU."""

    masks: list[WrittenMask]
    overlay: Path


def write_prediction(
    model: PromptableModel,
    photo: np.ndarray,
    out: Path,
    *,
    name: str,
    points_xy: Sequence[Sequence[float]] = (),
    point_labels: Sequence[int] = (),
    box_xyxy: Sequence[float] | None = None,
    multimask: bool = False,
) -> Prediction:
    """Segment one object of a photo and write NAME_mask_K.png and NAME_overlay.png.

    Args:
        photo: uint8 (H, W, 3) RGB.
        out: the directory; it is created if needed.
        name: begins the files' names.
        points_xy: N points XY in original pixels.
        point_labels: N labels, 1 on the object and 0 off it.
        box_xyxy: four corners' coordinates in original pixels.
        multimask: True for three masks, for ambiguous prompts; False for one.
    Raises:
        DistillError: the prompt is empty or has another shape, or a file cannot be written.
    """
    predictor = Predictor(model)
    predictor.set_image(photo)
    masks, iou_predictions, _ = predictor.predict(
        point_coords=points_xy or None,
        point_labels=point_labels or None,
        box=box_xyxy,
        multimask_output=multimask,
    )
    with write_errors(out, DistillError):
        out.mkdir(parents=True, exist_ok=True)
    written = []
    for k, (mask, iou) in enumerate(zip(masks, iou_predictions, strict=True)):
        path = out / f"{name}_mask_{k}.png"
        _write_png(path, mask)
        written.append(WrittenMask(path, float(iou), float(mask.mean())))
    overlay = out / f"{name}_overlay.png"
    best = masks[iou_predictions.argmax()]
    _write_png(overlay, draw_overlay(photo, best, box_xyxy=box_xyxy, points_xy=points_xy, point_labels=point_labels))
    return Prediction(written, overlay)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_whole(path, buffer.getvalue(), raises=DistillError)


def draw_overlay(
    photo: np.ndarray,
    mask: np.ndarray,
    *,
    box_xyxy: Sequence[float] | None = None,
    points_xy: Sequence[Sequence[float]] = (),
    point_labels: Sequence[int] = (),
) -> np.ndarray:
    """Tint a mask, bool (H, W), on a photo, uint8 (H, W, 3), and draw its prompt; coordinates are in original pixels.

    Returns:
        a new array, uint8 (H, W, 3).
    """
    image = Image.fromarray(paint_mask(photo, mask, MASK_COLOUR))
    draw = ImageDraw.Draw(image)
    mark = max(2.0, MARK_SHARE * max(image.size))
    if box_xyxy is not None:
        draw.rectangle(tuple(box_xyxy), outline=BOX_COLOUR, width=round(mark))
    for (x, y), label in zip(points_xy, point_labels, strict=True):
        colour = POSITIVE_COLOUR if label else NEGATIVE_COLOUR
        draw.ellipse((x - mark, y - mark, x + mark, y + mark), fill=colour, outline=(255, 255, 255))
    return np.asarray(image)
