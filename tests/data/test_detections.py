"""A detector's results JSON: the forms that exports take, and the mistakes in some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.data.coco import CocoSet
from distill.data.detections import Detection, Detections
from distill.errors import DataError
from distill.evaluation.detector_boxes import nearest_instance


@pytest.fixture
def coco_set(coco_files) -> CocoSet:
    """Make two photos of 30 x 40: ids 139 and 7, file names 000000000139.jpg and b.jpg, categories 1 and 3."""
    directory, file = coco_files([], num_images=2)
    for i, name in enumerate(("000000000139.jpg", "b.jpg")):
        (directory / f"{i}.jpg").rename(directory / name)
    images = [
        {"id": 139, "file_name": "000000000139.jpg", "height": 30, "width": 40},
        {"id": 7, "file_name": "b.jpg", "height": 30, "width": 40},
    ]
    row = {"id": 1, "image_id": 139, "category_id": 3, "bbox": [5, 5, 10, 10], "iscrowd": 0}
    square = {**row, "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]], "area": 100}
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    file.write_text(json.dumps({"images": images, "annotations": [square], "categories": categories}))
    return CocoSet(directory, file)


def read(tmp_path: Path, coco_set: CocoSet, content: Any) -> Detections:
    path = tmp_path / "detections.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Detections(path, coco_set)


def row(**fields: Any) -> dict[str, Any]:
    return {"image_id": 139, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5, **fields}


@pytest.mark.parametrize("image_id", [139, "139", "000000000139", "000000000139.jpg", "val2017/000000000139.jpg"])
def test_photos_are_named_by_number_text_or_file(tmp_path, coco_set, image_id):
    found = read(tmp_path, coco_set, [row(image_id=image_id)])
    assert found.by_photo == {"000000000139": [Detection(3, (1, 2, 4, 6), 0.5)]}


def test_ids_may_be_floats_without_a_fraction(tmp_path, coco_set):
    assert read(tmp_path, coco_set, [row(image_id=139.0, category_id=3.0)]).by_photo["000000000139"][0].category_id == 3


@pytest.mark.parametrize("container", ["annotations", "predictions", "detections"])
def test_further_keys_and_containers_are_accepted(tmp_path, coco_set, container):
    rows = [row(segmentation={"size": [30, 40], "counts": "x"}, file_name="b.jpg", id=4, category_id="3", score="0.25")]
    assert read(tmp_path, coco_set, {container: rows}).by_photo["000000000139"][0].score == 0.25


def test_boxes_end_at_the_photo_and_those_outside_are_counted(tmp_path, coco_set):
    rows = [row(bbox=[-5, 10, 100, 100]), row(bbox=[40, 0, 5, 5]), row(bbox=[3, 3, 0, 4])]
    found = read(tmp_path, coco_set, rows)
    assert found.by_photo["000000000139"] == [Detection(3, (0, 10, 40, 30), 0.5)]
    assert (found.num_outside, len(found)) == (2, 1)


def test_boxes_without_an_area_are_counted_where_boxes_are_clipped(tmp_path, coco_set):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([row(bbox=[3, 3, 0, 4]), row(bbox=[3, 3, 2, 0])]))
    found = Detections(path, coco_set)
    assert (found.num_outside, len(found)) == (2, 0)
    as_given = Detections(path, coco_set, clip=False)  # as the source of a protocol prompts by them
    assert (as_given.num_outside, len(as_given)) == (0, 2)


def test_detections_of_a_whole_split_serve_a_part_of_it(tmp_path, coco_set):
    found = read(tmp_path, coco_set, [row(), row(image_id=99)])
    assert (len(found), found.num_foreign) == (1, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "holds no detection; run the detector again"),
        ([row(image_id=1), row(image_id=2)], "none of its 2 detections is on a photo of .*this split"),
        ([row(category_id=0)], r"category 0, which the annotations do not have \(2 from 1 to 3\)"),
        (
            [row(), {"image_id": 139, "bbox": [0, 0, 1, 1], "score": 1}],
            r"missing required field `category_id` at `\$\[1\]`",
        ),
        ([row(bbox=[1, 2, 3])], r"Expected `array` of length >= 4 at `\$\[0\].bbox`"),
        ([row(score=float("nan"))], "NaN is no number of JSON"),
        ([row(bbox=[0, 0, 1e30, 1])], r"Expected `float` <= 1000000.0 at `\$\[0\].bbox\[2\]`"),
        ([row(), row(bbox=[9, 9, 4, -1])], r"detection 1: its 'bbox' is \[9.0, 9.0, 4.0, -1.0\], and COCO's is"),
        ([row(bbox="full")], r"Expected `array`, got `str` at `\$\[0\].bbox`"),
        ([row(category_id=1.5)], r"Expected `int`, got `float` at `\$\[0\].category_id`"),
        ({"images": []}, "holds no list of detections; a results JSON is needed"),
        (5, "Expected `.*`, got `int`; a results JSON is needed"),
        ("[{", "not JSON"),
    ],
)
def test_mistakes_are_named(tmp_path, coco_set, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, coco_set, content)


def test_an_absent_file_is_named(tmp_path, coco_set):
    with pytest.raises(DataError, match=r"nothing\.json: the detections cannot be read .* a results JSON is needed"):
        Detections(tmp_path / "nothing.json", coco_set)


def test_the_instance_that_a_box_means(coco_set):
    (instance,) = next(iter(coco_set)).instances
    assert nearest_instance(Detection(3, (8, 8, 20, 20), 1.0), [instance]) == instance
    assert nearest_instance(Detection(1, (8, 8, 20, 20), 1.0), [instance]) is None
    assert nearest_instance(Detection(3, (20, 20, 30, 30), 1.0), [instance]) is None
