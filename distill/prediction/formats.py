"""Masks in the formats of other tools: COCO JSON as run lengths or polygons, and YOLO's segmentation labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.polygons import mask_polygons
from distill.data.rle import RLE, decode_mask, rle_area, rle_box_xyxy
from distill.errors import DistillError
from distill.files import write_errors, write_json, write_text
from distill.prediction.record import ObjectRecord, PhotoRecord

COCO_FILE, POLYGONS_FILE, LABELS_FOLDER = "predictions.json", "polygons.json", "labels"
CLASSES_FILE = "classes.txt"  # of YOLO's labels: a category id for each class, from class 0 on
DECIMALS = 2  # of polygons, in pixels
YOLO_DECIMALS = 6  # of shares of the photo's sides


def write_coco(photos: Sequence[PhotoRecord], path: Path, *, polygons: bool = False) -> int:
    """Write the best mask of each object as COCO-format annotations, which `distill evaluate` and others read.

    Each annotation has `predicted_iou` and `score` too: the detector's score, else the predicted IoU.

    Args:
        polygons: True for polygons, False for compressed run lengths.
    Returns:
        the number of objects that have no pixel and are left out.
    Raises:
        DistillError: the file cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories, num_empty = {one.category_id for photo in photos for one in photo.objects}, 0
    for image_id, photo in enumerate(photos, start=1):
        images.append({"id": image_id, "file_name": photo.file, "height": photo.height, "width": photo.width})
        for one in photo.objects:
            row = _annotation(one, polygons)
            if row is None:
                num_empty += 1
            else:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **row})
    content = {
        "info": {"description": "masks by distill predict"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in sorted(categories)],
    }
    write_json(path, content, indent=0, raises=DistillError)
    return num_empty


def write_yolo(photos: Sequence[PhotoRecord], folder: Path) -> int:
    """Write a text file for each photo, a line for each object: its class and one polygon, in shares of the sides.

    Parts and holes of a mask are joined into one polygon (data.polygons). `classes.txt` names the category of each
    class, which are counted from 0.

    Returns:
        the number of objects that have no pixel and are left out.
    Raises:
        DistillError: a file cannot be written.
    """
    categories = sorted({one.category_id for photo in photos for one in photo.objects})
    numbers, num_empty = {category: i for i, category in enumerate(categories)}, 0
    for photo in photos:
        lines = []
        for one in photo.objects:
            polygons = mask_polygons(decode_mask(one.masks[one.best]), single=True)
            if not polygons:
                num_empty += 1
                continue
            shares = polygons[0] / np.array([photo.width, photo.height])
            coordinates = " ".join(f"{value:.{YOLO_DECIMALS}f}" for value in shares.ravel())
            lines.append(f"{numbers[one.category_id]} {coordinates}\n")
        path = folder / f"{photo.name}.txt"
        with write_errors(path, DistillError):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines), raises=DistillError)
    with write_errors(folder, DistillError):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CLASSES_FILE, "".join(f"{category}\n" for category in categories), raises=DistillError)
    return num_empty


def _annotation(one: ObjectRecord, polygons: bool) -> dict[str, Any] | None:
    """Return what an annotation says of an object, or None if its mask has no pixel."""
    code = one.masks[one.best]
    area = rle_area(code)
    if not area:
        return None
    x0, y0, x1, y1 = rle_box_xyxy(code)
    iou = one.predicted_iou[one.best]
    return {
        "category_id": one.category_id,
        "segmentation": _polygons_of(code) if polygons else code,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": area,
        "iscrowd": 0,
        "score": iou if one.score is None else one.score,
        "predicted_iou": iou,
    }


def _polygons_of(code: RLE) -> list[list[float]]:
    return [polygon.round(DECIMALS).ravel().tolist() for polygon in mask_polygons(decode_mask(code))]
