"""EfficientViT-SAM's evaluation written again from a description of it, to judge `eval/efficientvit_sam/*` by.

It shares nothing with the evaluator: of this package it uses the predictor alone. Photos are read by Pillow, masks by
pycocotools, one prompt goes at a time, and clicks are found on complete photos.

    python tests/evaluation/independent_efficientvit_sam.py MODEL IMAGES ANNOTATIONS [PHOTOS]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import distance_transform_edt

from distill.models.predictor import Predictor

CLICKS = (1, 3, 5)
BOX = 0  # in place of a number of clicks


def score(
    predictor: Predictor, images: Path, annotations: Path, num_photos: int = 0
) -> dict[bool, dict[int, dict[str, float]]]:
    """Return the mean IoU with crowd regions (True) and without, by prompt (BOX or a number of clicks) and size.

    It is in 0..1; NaN without such an object.
    """
    found: list[dict[Any, float]] = []
    for photo, rows in photos(annotations, num_photos):
        chosen = [row for row in rows if row["area"] >= 1]
        if not chosen:
            continue
        predictor.set_image(np.array(Image.open(images / photo["file_name"]).convert("RGB")))
        for row in chosen:
            truth = mask_of(row["segmentation"], photo["height"], photo["width"])
            masks = {BOX: by_box(predictor, row["bbox"]), **by_clicks(predictor, truth)}
            ious = {prompt: (mask & truth).sum() / ((mask | truth).sum() + 1e-7) for prompt, mask in masks.items()}
            found.append({"area": row["area"], "is_crowd": row["iscrowd"], **ious})
    chosen_rows = {True: found, False: [row for row in found if not row["is_crowd"]]}
    return {
        crowds: {prompt: by_size([(row["area"], row[prompt]) for row in rows]) for prompt in (BOX, *CLICKS)}
        for crowds, rows in chosen_rows.items()
    }


def photos(annotations: Path, num_photos: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield the first photos, by their names, each with its annotations."""
    content = json.loads(annotations.read_text())
    images = sorted(content["images"], key=lambda image: Path(image["file_name"]).stem)
    for image in images[: num_photos or None]:
        yield image, [row for row in content["annotations"] if row["image_id"] == image["id"]]


def mask_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode polygons or a code to a mask, bool (H, W)."""
    code = segmentation
    if isinstance(segmentation, list):
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, height, width)
    mask: np.ndarray = coco_mask.decode(code) > 0
    return mask


def by_box(predictor: Predictor, xywh: list[float]) -> np.ndarray:
    """Return the mask of a box that the model itself thinks the best of three."""
    x, y, width, height = xywh
    masks, predicted_iou, _ = predictor.predict(box=[x, y, x + width, y + height], multimask_output=True)
    best: np.ndarray = masks[predicted_iou.argmax()]
    return best


def by_clicks(predictor: Predictor, truth: np.ndarray) -> dict[int, np.ndarray]:
    """Return the masks after each of CLICKS. A click is at the deepest point of the error that is not clicked yet."""
    mask = np.zeros_like(truth)
    is_free = np.ones_like(truth)
    points: list[tuple[int, int]] = []
    labels: list[int] = []
    found = {}
    for num in range(1, max(CLICKS) + 1):
        point, label = deepest_click(truth, mask, is_free)
        points.append(point)
        labels.append(label)
        masks, predicted_iou, _ = predictor.predict(point_coords=points, point_labels=labels, multimask_output=True)
        mask = masks[predicted_iou.argmax()]
        found[num] = mask
    return {num: found[num] for num in CLICKS}


def deepest_click(truth: np.ndarray, mask: np.ndarray, is_free: np.ndarray) -> tuple[tuple[int, int], int]:
    """Return the next click, X and Y in whole pixels, and its label. `is_free` loses the pixel."""
    missing, wrong = (depth(error) * is_free for error in (truth & ~mask, mask & ~truth))
    label = int(missing.max() > wrong.max())
    row, column = np.unravel_index((missing if label else wrong).argmax(), truth.shape)
    is_free[row, column] = False
    return (int(column), int(row)), label


def depth(region: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the outside of a region; outside of the photo is outside."""
    distances: np.ndarray = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    return distances.astype(np.float32)


def by_size(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Return the mean IoU of all objects and of each size. An object at a bound belongs to both sides."""
    areas, ious = np.array(pairs).T
    groups = {
        "miou": areas >= 0,
        "miou_large": areas >= 96**2,
        "miou_medium": (areas >= 32**2) & (areas <= 96**2),
        "miou_small": areas <= 32**2,
    }
    return {name: float(ious[group].mean()) if group.any() else float("nan") for name, group in groups.items()}


def main() -> None:
    """Print the scores of a model, with and without crowd regions."""
    from distill.models.checkpoint import load_model

    model, images, annotations, *rest = sys.argv[1:]
    num_photos = int(rest[0]) if rest else 0
    found = score(Predictor(load_model(model)), Path(images), Path(annotations), num_photos)
    for crowds, by_prompt in found.items():
        for prompt, scores in by_prompt.items():
            words = " ".join(f"{name} {value:.6f}" for name, value in scores.items())
            print(f"{'with' if crowds else 'without'} crowds, {prompt or 'box'}: {words}")


if __name__ == "__main__":
    main()
