from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from distill.data.coco import CocoSet
from distill.data.rle import decode_mask, encode_mask
from distill.errors import DataError

HW = (30, 40)
SQUARE = [[5, 3, 25, 3, 25, 10, 5, 10]]


def annotation(identity: int = 1, image_id: int = 0, **fields) -> dict:
    row = {"id": identity, "image_id": image_id, "category_id": 7, "bbox": [5, 3, 20, 7], "segmentation": SQUARE}
    return {**row, "area": 140, "iscrowd": 0, **fields}


def test_photos_come_with_their_instances(coco_files, box_mask) -> None:
    coco_set = CocoSet(*coco_files([annotation(1), annotation(2, image_id=1)]))
    assert len(coco_set) == 2 and coco_set.num_instances == 2
    (key, path, hw, (instance,)), other = coco_set
    assert (key, path.name, hw) == ("0", "0.jpg", HW)
    assert instance.bbox_xyxy == (5, 3, 25, 10)
    assert (instance.id, instance.category_id, instance.area) == (1, 7, 140)
    assert np.array_equal(decode_mask(instance.rle), box_mask(HW, 3, 10, 5, 25))
    assert other.key == "1" and other.load().shape == (*HW, 3)


def test_box_and_area_come_from_the_mask_when_they_are_not_given(coco_files) -> None:
    bare = {"id": 1, "image_id": 0, "segmentation": SQUARE}
    (instance,) = next(iter(CocoSet(*coco_files([bare])))).instances
    assert instance.bbox_xyxy == (5, 3, 25, 10) and instance.area == 140


def test_photos_are_ordered_by_key_and_may_have_no_instance(coco_files) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 30, "width": 40} for i in (1, 0)]
    assert [(photo.key, photo.instances) for photo in CocoSet(*coco_files([], images=images))] == [("0", []), ("1", [])]


def test_crowd_regions_are_left_out_and_counted(coco_files) -> None:
    crowd = annotation(2, iscrowd=1, segmentation={"size": list(HW), "counts": [0, 1200]})
    coco_set = CocoSet(*coco_files([annotation(1), crowd]))
    assert coco_set.num_crowd == 1
    assert [instance.id for photo in coco_set for instance in photo.instances] == [1]


def test_masks_without_pixels_are_left_out_and_named(coco_files) -> None:
    empty = encode_mask(np.zeros(HW, bool))
    coco_set = CocoSet(*coco_files([annotation(1), annotation(2, segmentation=empty), annotation(3, segmentation=[])]))
    for _ in range(2):
        assert [instance.id for photo in coco_set for instance in photo.instances] == [1]
        assert coco_set.empty == {2: "0", 3: "0"}


def test_an_annotation_of_an_absent_image_is_named(coco_files) -> None:
    with pytest.raises(DataError, match=r"instances\.json: annotation 8 names image 99"):
        CocoSet(*coco_files([annotation(8, image_id=99)]))


def test_an_absent_photo_is_named(coco_files) -> None:
    images, file = coco_files([annotation(image_id=1)])
    (images / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 2 photos .* absent: 1\.jpg \(image 1\); give the directory"):
        CocoSet(images, file)


def test_two_photos_of_one_key_are_refused(coco_files) -> None:
    images = [{"id": i, "file_name": name, "height": 30, "width": 40} for i, name in enumerate(["0.jpg", "a/0.png"])]
    with pytest.raises(DataError, match="same key '0'"):
        CocoSet(*coco_files([], images=images))


def test_a_photo_of_another_size_is_named_when_it_is_loaded(coco_files) -> None:
    images = [{"id": 0, "file_name": "0.jpg", "height": 31, "width": 40}]
    (photo,) = CocoSet(*coco_files([], images=images))
    with pytest.raises(DataError, match=r"0\.jpg.*30 x 40"):
        photo.load()


@pytest.mark.parametrize("missing", ["id", "image_id", "segmentation"])
def test_a_missing_field_is_named(coco_files, missing: str) -> None:
    row = annotation()
    del row[missing]
    with pytest.raises(DataError, match=f"no '{missing}'"):
        list(CocoSet(*coco_files([row])))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not COCO's format"),
        (json.dumps({"images": [], "annotations": {}}), "not COCO's format"),
        (json.dumps({"images": [], "annotations": []}), "'images' is empty"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "instances.json"
    file.write_text(content)
    with pytest.raises(DataError, match=words):
        CocoSet(tmp_path, file)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json"):
        CocoSet(tmp_path, tmp_path / "nothing.json")


@pytest.mark.skipif("DISTILL_DATA" not in os.environ, reason="DISTILL_DATA names no folder with coco_mini")
def test_coco_mini() -> None:
    folder = Path(os.environ["DISTILL_DATA"]) / "coco_mini"
    coco_set = CocoSet(folder / "val", folder / "instances_val.json")
    photos = list(coco_set)
    assert (len(photos), sum(len(photo.instances) for photo in photos), coco_set.num_crowd) == (99, 706, 5)
