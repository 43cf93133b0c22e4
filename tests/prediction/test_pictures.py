"""Predictions as pictures: their names and contents, and what is drawn on the overlay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.painting import BOX_COLOUR, MASK_COLOURS, MASK_OPACITY, NEGATIVE_COLOUR, POSITIVE_COLOUR, paint_mask
from distill.data.rle import encode_mask
from distill.errors import DistillError
from distill.prediction.answering import FoundObject
from distill.prediction.asking import ObjectPrompt
from distill.prediction.pictures import draw_overlay, write_pictures

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


def object_at(x0: int, x1: int, ious: tuple[float, ...] = (0.5,)) -> FoundObject:
    masks = []
    for k in range(len(ious)):
        mask = np.zeros(PHOTO.shape[:2], bool)
        mask[5 + k : 30, x0:x1] = True
        masks.append(encode_mask(mask))
    return FoundObject(ObjectPrompt((float(x0), 5.0, float(x1), 30.0)), tuple(masks), ious)


def test_one_object(tmp_path: Path):
    found = object_at(10, 30, (0.2, 0.9, 0.4))
    paths = write_pictures(PHOTO, [found], tmp_path / "new" / "out", "photo")
    assert [path.name for path in paths] == [*(f"photo_mask_{k}.png" for k in range(3)), "photo_overlay.png"]
    for k, path in enumerate(paths[:-1]):
        mask = np.asarray(Image.open(path).convert("L"))
        assert set(np.unique(mask)) == {0, 255} and (mask[5 + k : 30, 10:30] == 255).all() and not mask[: 5 + k].any()
    best = np.zeros(PHOTO.shape[:2], bool)
    best[6:30, 10:30] = True
    assert np.array_equal(np.asarray(Image.open(paths[-1])), draw_overlay(PHOTO, [best], [found.prompt]))


def test_several_objects_have_names_and_colours_of_their_own(tmp_path: Path):
    grey = np.full_like(PHOTO, 100)
    paths = write_pictures(grey, [object_at(5, 20), object_at(40, 60)], tmp_path, "folder/photo")
    names = ["photo_object_0_mask_0.png", "photo_object_1_mask_0.png", "photo_overlay.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [f"folder/{name}" for name in names]
    overlay = np.asarray(Image.open(paths[-1]))
    for colour, x in zip(MASK_COLOURS, (12, 50), strict=False):
        expected = np.round(100 + MASK_OPACITY * (np.array(colour, np.float64) - 100))
        assert (overlay[20, x] == expected).all()


def test_no_object(tmp_path: Path):
    paths = write_pictures(PHOTO, [], tmp_path, "photo")
    assert [path.name for path in paths] == ["photo_overlay.png"]
    assert np.array_equal(np.asarray(Image.open(paths[0])), PHOTO)


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match="cannot be written"):
        write_pictures(PHOTO, [object_at(5, 20)], tmp_path / "file" / "out", "photo")


def test_a_mask_is_tinted_and_the_photo_is_left_as_it_is():
    photo, mask = np.full((4, 5, 3), 100, np.uint8), np.eye(4, 5, dtype=bool)
    painted = paint_mask(photo, mask, MASK_COLOURS[0])
    assert painted.dtype == np.uint8 and (photo == 100).all()
    assert (painted[~mask] == 100).all()
    expected = np.round(100 + MASK_OPACITY * (np.array(MASK_COLOURS[0], np.float64) - 100))
    assert (painted[mask] == expected).all()


def test_the_overlay_shows_the_prompts():
    photo = np.full((40, 60, 3), 100, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[5:10, 5:10] = True
    picture = draw_overlay(photo, [mask])
    assert (picture[~mask] == 100).all() and (picture[mask] != 100).any(1).all()
    prompt = ObjectPrompt((2, 2, 50, 30), ((15, 12), (40, 20)), (0, 1))
    prompted = draw_overlay(photo, [mask], [prompt])
    assert tuple(prompted[2, 20]) == BOX_COLOUR
    assert tuple(prompted[12, 15]) == NEGATIVE_COLOUR and tuple(prompted[20, 40]) == POSITIVE_COLOUR
