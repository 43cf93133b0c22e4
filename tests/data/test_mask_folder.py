"""Masks beside photos: each form gives the same objects, and what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from distill.data.coco import CocoFile
from distill.data.folder import PhotoFolder
from distill.data.mask_folder import read_mask_folder
from distill.data.rle import decode_mask, encode_mask, encode_objects
from distill.errors import DataError

HW = (30, 40)
BOXES = ((2, 3, 12, 20), (15, 25, 28, 39))  # top, left, bottom, right


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Write two photos, one of them in a folder, and an empty folder of masks."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    for name in ("a.jpg", "deep/b.png"):
        Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path


def label_map(values: tuple[int, ...] = (1, 2), dtype: type = np.uint8) -> np.ndarray:
    found = np.zeros(HW, dtype)
    for value, (top, left, bottom, right) in zip(values, BOXES, strict=True):
        found[top:bottom, left:right] = value
    return found


def save(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def read(place: Path, **options: bool) -> CocoFile:
    photos = place / "photos"
    return read_mask_folder(list(PhotoFolder(photos)), photos, place / "masks", **options)


def objects(content: CocoFile, number: int = 0) -> list[tuple[int, int, int, int]]:
    """Return the boxes of a photo's masks, as those in BOXES, and check that the masks fill them."""
    boxes = []
    for row in content.annotations:
        if row.image_id == number:
            left, top, width, height = (int(side) for side in row.bbox)
            assert decode_mask(row.segmentation)[top : top + height, left : left + width].all()
            assert row.area == width * height
            boxes.append((top, left, top + height, left + width))
    return boxes


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_a_label_map_has_an_object_for_each_value(place: Path, name: str) -> None:
    save(label_map(), place / "masks" / name)
    content = read(place)
    assert objects(content) == list(BOXES) and objects(content, 1) == []
    assert [row.file_name for row in content.images] == ["a.jpg", "deep/b.png"]


def test_values_above_255_and_colours_are_objects_too(place: Path) -> None:
    save(label_map((300, 7), np.uint16), place / "masks/a.png")
    colours = np.zeros((*HW, 3), np.uint8)
    colours[label_map() == 1], colours[label_map() == 2] = (255, 0, 0), (0, 0, 255)
    save(colours, place / "masks/deep/b.png")
    content = read(place)
    assert sorted(objects(content)) == sorted(objects(content, 1)) == list(BOXES)


def test_a_folder_has_a_file_for_each_object(place: Path) -> None:
    for value in (1, 2):
        save((label_map() == value) * np.uint8(255), place / f"masks/a/{value}.png")
        save(label_map() == value, place / f"masks/deep/b/{value}.png")
    content = read(place)
    assert objects(content) == objects(content, 1) == list(BOXES)


def test_regions_of_one_value_are_objects_if_asked(place: Path) -> None:
    save((label_map() > 0) * np.uint8(255), place / "masks/a.png")
    assert len([row for row in read(place).annotations if row.image_id == 0]) == 1
    assert objects(read(place, connected_regions=True)) == list(BOXES)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
@pytest.mark.parametrize("connected_regions", [False, True])
def test_objects_are_what_each_value_covers(dtype: type, connected_regions: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        hw = random.integers(1, 9, 2)
        values = (random.integers(0, 4, hw) * (random.random(hw) < 0.8)).astype(dtype)
        expected = []
        for value in np.unique(values[values != 0]):
            regions, num_regions = (
                label(values == value, np.ones((3, 3))) if connected_regions else (values == value, 1)
            )
            expected += [encode_mask(regions == number) for number in range(1, num_regions + 1)]
        assert list(encode_objects(values, connected_regions=connected_regions, most=64, origin="a")) == expected


def test_many_values_take_one_look_at_the_map(place: Path) -> None:
    """Read 4,000 values of a map of 4 million pixels: a look for each would take a minute."""
    values = np.zeros((2000, 2000), np.uint16)
    values[::40, ::25] = np.arange(1, 4001).reshape(50, 80)
    save(values, place / "masks/a.png")
    Image.fromarray(np.zeros_like(values, np.uint8)).save(place / "photos/a.jpg")
    content = read(place)
    assert len(content.annotations) == 4000 and all(row.area == 1 for row in content.annotations)
    assert [row.bbox for row in content.annotations[:2]] == [[0, 0, 1, 1], [25, 0, 1, 1]]


@pytest.mark.parametrize("form", ["label map", "regions of a label map", "regions of a mask"])
def test_a_photo_instead_of_a_mask(place: Path, form: str) -> None:
    """Refuse more objects than 16 bits hold, in any form."""
    dots = np.zeros((600, 600), np.uint8)
    dots[::2, ::2] = 255
    if form == "label map":
        save(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8), place / "masks/a.png")
    else:
        save(dots, place / ("masks/a.png" if "label" in form else "masks/a/1.png"))
    with pytest.raises(DataError, match=r"png: \d\d,\d{3} objects are too many for a mask \(at most 65,535\)"):
        read(place, connected_regions=form != "label map")


def test_masks_that_fit_no_photo_are_named(place: Path) -> None:
    save(label_map(), place / "masks/a.png")
    save(label_map(), place / "masks/a_mask.png")
    with pytest.raises(DataError, match=r"1 of 2 masks fit no photo of .*photos: a_mask.png; each mask is called"):
        read(place)


def test_what_is_wrong_is_named(place: Path) -> None:
    with pytest.raises(DataError, match="no mask in it"):
        read(place)
    save(label_map()[:-1], place / "masks/a.png")
    with pytest.raises(DataError, match="the mask of 'a' has 29 x 40 pixels .height x width., its photo 30 x 40"):
        read(place)
    (place / "masks/a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be decoded"):
        read(place)
    save(label_map(), place / "masks/a.png")
    save(label_map(), place / "masks/a/1.png")
    with pytest.raises(DataError, match="a: a label map and a folder of masks"):
        read(place)
