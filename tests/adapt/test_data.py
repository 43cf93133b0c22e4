"""The parts of an adaptation's data: what has no mask is named, and a split is the same for the same seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.adapt.data import check_parts, read_annotated, split
from distill.errors import DataError

MASK = {"category_id": 1, "segmentation": [[5, 3, 25, 3, 25, 10, 5, 10]], "bbox": [5, 3, 20, 7], "area": 140}
NOTHING = {"category_id": 1, "segmentation": [[5, 3, 5, 3, 5, 3]], "bbox": [5, 3, 0, 0], "area": 0}

CocoFiles = Callable[..., tuple[Path, Path]]


def masks_of(*photos: int) -> list[dict]:
    return [{**MASK, "id": i + 1, "image_id": photo} for i, photo in enumerate(photos)]


def names(part) -> list[str]:
    return [row.file_name for row in part.content.images]


def test_photos_without_masks_are_refused_or_left_out(coco_files: CocoFiles) -> None:
    rows = [*masks_of(0, 0), {**NOTHING, "id": 9, "image_id": 1}, {**MASK, "id": 10, "image_id": 2, "iscrowd": 1}]
    photos, file = coco_files(rows, num_images=4)
    content = json.loads(file.read_text())
    content["images"] = content["images"][:3]  # photo 3 is in the folder alone
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"3 of 4 photos have no mask in .*: 1, 2, 3; .*--skip-unannotated"):
        read_annotated(photos, file)
    found, notes = read_annotated(photos, file, skip_unannotated=True)
    assert names(found) == ["0.jpg"] and [row.id for row in found.content.annotations] == [1, 2]
    assert [note.partition(":")[2].split()[:2] for note in notes] == [["1", "masks"], ["1", "crowd"], ["3", "photos"]]
    assert "annotations 9 (photo '1')" in notes[0]


def test_without_any_mask_there_is_nothing_to_leave_out(coco_files: CocoFiles) -> None:
    photos, file = coco_files([], num_images=2)
    with pytest.raises(DataError, match="2 of 2 photos have no mask in .*; give masks of these photos"):
        read_annotated(photos, file, skip_unannotated=True)


def test_a_folder_of_masks_may_lie_in_the_folder_of_photos(coco_files: CocoFiles) -> None:
    photos, _ = coco_files([], num_images=1)
    (photos / "masks").mkdir()
    mask = np.zeros((30, 40), np.uint8)
    mask[2:9, 3:8] = 1
    Image.fromarray(mask).save(photos / "masks" / "0.png")
    found, notes = read_annotated(photos, photos / "masks")
    assert names(found) == ["0.jpg"] and found.num_masks == 1 and notes == []


def test_connected_regions_are_of_masks_alone(coco_files: CocoFiles) -> None:
    photos, file = coco_files(masks_of(0, 1))
    with pytest.raises(DataError, match="--connected-regions is for a folder of masks"):
        read_annotated(photos, file, connected_regions=True)


def test_a_split_is_drawn_by_its_seed_whatever_the_order_of_the_file(coco_files: CocoFiles) -> None:
    photos, file = coco_files(masks_of(*range(20)), num_images=20)
    found, _ = read_annotated(photos, file)
    train, val = split(found, val_share=0.25, seed=3)
    assert (len(train), len(val)) == (15, 5) == (train.num_masks, val.num_masks)
    assert sorted(names(train) + names(val)) == sorted(names(found))
    content = json.loads(file.read_text())
    content["images"].reverse()
    file.write_text(json.dumps(content))
    again = split(read_annotated(photos, file)[0], val_share=0.25, seed=3)
    assert sorted(names(again[1])) == sorted(names(val))
    assert names(split(found, val_share=0.25, seed=4)[1]) != names(val)


def test_too_few_photos_cannot_be_split(coco_files: CocoFiles) -> None:
    found, _ = read_annotated(*coco_files(masks_of(*range(5)), num_images=5))
    with pytest.raises(DataError, match="5 annotated photos are too few to hold 2 back"):
        split(found, val_share=0.2, seed=0)


def test_a_photo_is_not_in_both_parts(coco_files: CocoFiles, tmp_path: Path) -> None:
    photos, file = coco_files(masks_of(*range(6)), num_images=6)
    found, _ = read_annotated(photos, file)
    (tmp_path / "val").mkdir()
    for name in ("2.jpg", "4.jpg"):
        shutil.copy(photos / name, tmp_path / "val" / name)
    content = json.loads(file.read_text())
    content["images"] = [row for row in content["images"] if row["id"] in (2, 4)]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in (2, 4)]
    (tmp_path / "val.json").write_text(json.dumps(content))
    val, _ = read_annotated(tmp_path / "val", tmp_path / "val.json")
    with pytest.raises(DataError, match=r"2 photos are in .*: 2.jpg, 4.jpg; a student that has seen"):
        check_parts(found, val)
    with pytest.raises(DataError, match="2 annotated photos are too few; PHOTOS needs 4"):
        check_parts(val, val)


def test_few_masks_of_each_photo_are_drawn_by_a_seed(coco_files: CocoFiles) -> None:
    found, _ = read_annotated(*coco_files(masks_of(*[0] * 9, 1, 1)))
    few = found.with_few_masks(3, seed=0)
    drawn = [(row.image_id, row.id) for row in few.content.annotations]
    assert [image for image, _ in drawn] == [0, 0, 0, 1, 1] and len(few) == 2
    assert found.with_few_masks(3, seed=0) == few != found.with_few_masks(3, seed=1)
    assert found.with_few_masks(9, seed=0) == found
