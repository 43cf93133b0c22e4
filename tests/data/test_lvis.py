"""LVIS's annotation files over COCO's photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.data.lvis import LvisSet
from distill.errors import DataError

ROW = {"id": 1, "image_id": 0, "category_id": 7, "bbox": [5, 3, 20, 7], "area": 140}
ANNOTATION = {**ROW, "segmentation": [[5, 3, 25, 3, 25, 10, 5, 10]]}  # LVIS has no iscrowd


def lvis_files(coco_files, **image_fields) -> tuple[Path, Path]:
    """Make a set of one photo that is named by its address alone, as in LVIS."""
    images, file = coco_files([ANNOTATION], num_images=1)
    content = json.loads(file.read_text())
    row = {"id": 0, "height": 30, "width": 40, "coco_url": "http://images.cocodataset.org/train2017/0.jpg"}
    content["images"] = [{**row, "neg_category_ids": [], "not_exhaustive_category_ids": [], **image_fields}]
    content["categories"] = [{"id": 7, "name": "cat", "frequency": "r"}]
    file.write_text(json.dumps(content))
    return images, file


def test_photos_are_found_with_and_without_their_split(coco_files):
    images, file = lvis_files(coco_files)
    (photo,) = LvisSet(images, file)
    assert photo.path == images / "0.jpg" and len(photo.instances) == 1
    (images / "train2017").mkdir()
    (images / "0.jpg").rename(images / "train2017" / "0.jpg")
    (photo,) = LvisSet(images, file)
    assert photo.path == images / "train2017" / "0.jpg" and photo.key == "0"


def test_a_set_without_lvis_fields_is_refused(coco_files):
    images, file = lvis_files(coco_files)
    content = json.loads(file.read_text())
    for kind, field in (("images", "neg_category_ids"), ("categories", "frequency")):
        broken = {**content, kind: [{k: v for k, v in content[kind][0].items() if k != field}]}
        file.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=f"instances.json: Object missing required field `{field}`"):
            LvisSet(images, file)


def test_a_photo_without_name_and_address_is_refused(coco_files):
    images, file = lvis_files(coco_files)
    content = json.loads(file.read_text())
    del content["images"][0]["coco_url"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="neither 'file_name' nor 'coco_url'"):
        LvisSet(images, file)
