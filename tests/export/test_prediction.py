"""Predictions as files: their names and contents, what is drawn on the overlay, and a folder that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.painting import MASK_OPACITY, paint_mask
from distill.errors import DistillError
from distill.export.prediction import BOX_COLOUR, MASK_COLOUR, NEGATIVE_COLOUR, draw_overlay, write_prediction
from distill.models.predictor import Predictor
from distill.models.teacher import Teacher

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
BOX = (10.0, 5.0, 60.0, 40.0)


def test_files_hold_what_the_predictor_says(tiny_teacher: Teacher, tmp_path: Path):
    model = tiny_teacher.model
    written = write_prediction(model, PHOTO, tmp_path / "new" / "out", name="photo", box_xyxy=BOX, multimask=True)
    predictor = Predictor(model)
    predictor.set_image(PHOTO)
    masks, iou_predictions, _ = predictor.predict(box=BOX)
    assert [mask.predicted_iou for mask in written.masks] == iou_predictions.tolist()
    assert [mask.area_share for mask in written.masks] == [mask.mean() for mask in masks]
    for k, (file, mask) in enumerate(zip(written.masks, masks, strict=True)):
        assert file.path == tmp_path / "new" / "out" / f"photo_mask_{k}.png"
        assert np.array_equal(np.asarray(Image.open(file.path).convert("L")), 255 * mask)
    best = masks[iou_predictions.argmax()]
    assert np.array_equal(np.asarray(Image.open(written.overlay)), draw_overlay(PHOTO, best, box_xyxy=BOX))
    assert sorted(path.name for path in written.overlay.parent.iterdir()) == [
        *(f"photo_mask_{k}.png" for k in range(3)),
        "photo_overlay.png",
    ]


def test_a_folder_that_cannot_be_made(tiny_teacher: Teacher, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match="cannot be written"):
        write_prediction(tiny_teacher.model, PHOTO, tmp_path / "file" / "out", name="photo", box_xyxy=BOX)


def test_a_mask_is_tinted_and_the_photo_is_left_as_it_is():
    photo, mask = np.full((4, 5, 3), 100, np.uint8), np.eye(4, 5, dtype=bool)
    painted = paint_mask(photo, mask, MASK_COLOUR)
    assert painted.dtype == np.uint8 and (photo == 100).all()
    assert (painted[~mask] == 100).all()
    expected = np.round(100 + MASK_OPACITY * (np.array(MASK_COLOUR, np.float64) - 100))
    assert (painted[mask] == expected).all()


def test_the_overlay_tints_the_mask_alone():
    photo = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:10, 5:10] = True
    picture = draw_overlay(photo, mask)
    assert (picture[~mask] == 100).all()
    assert (picture[mask] != 100).any(1).all()
    prompted = draw_overlay(photo, mask, box_xyxy=(2, 2, 25, 15), points_xy=[(15, 12)], point_labels=[0])
    assert tuple(prompted[2, 10]) == BOX_COLOUR
    assert tuple(prompted[12, 15]) == NEGATIVE_COLOUR
