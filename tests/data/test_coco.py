from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from distill.config.schema import EvaluatePromptConfig
from distill.data.coco import CocoSet
from distill.data.images import read_photo
from distill.data.rle import decode_mask, encode_mask
from distill.errors import DataError
from distill.evaluation.evaluator import PromptEvaluation
from distill.evaluation.prompting import PromptProtocol

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
    with pytest.raises(
        DataError, match=rf"instances\.json: Object missing required field `{missing}` at `\$\.annotations\[0\]`"
    ):
        list(CocoSet(*coco_files([row])))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "Expected `object`, got `array`; a COCO-format JSON is needed"),
        (json.dumps({"images": [], "annotations": {}}), r"Expected `array`, got `object` at `\$.annotations`"),
        (json.dumps({"images": [], "annotations": []}), "'images' is empty"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "instances.json"
    file.write_text(content)
    with pytest.raises(DataError, match=words):
        CocoSet(tmp_path, file)


def written(file: Path, *, section: str = "annotations", **fields: str) -> Path:
    """Write raw JSON values into the first row of a section: json.dumps could not write all of them."""
    content = json.loads(file.read_text())
    content[section][0].update({name: f"<{name}>" for name in fields})
    text = json.dumps(content)
    for name, value in fields.items():
        text = text.replace(f'"<{name}>"', value)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"segmentation": "[[1e9, 3, 25, 3, 25, 10]]"},
            r"<= 1000000\.0 at `\$\.annotations\[0\]\.segmentation\[0\]\[0\]`",
        ),
        ({"segmentation": "[[Infinity, 3, 25, 3, 25, 10]]"}, "Infinity is no number of JSON"),
        ({"segmentation": "[[1e999, 3, 25, 3, 25, 10]]"}, "out of range"),
        ({"segmentation": "[[5, 3, 25, 3, 25, 10, 5]]"}, r"annotation 1 \(image 0\): a polygon .* has 7 numbers"),
        ({"segmentation": json.dumps([[0, 0, 1e6, 1e6] * 99])}, "annotation 1 .* outline of its segmentation is"),
        ({"segmentation": '{"size": [30, 40], "counts": [1, -1, 1200]}'}, r"Expected `int` >= 0 at .*counts\[1\]"),
        ({"segmentation": '{"size": [30, 40], "counts": [1, 18446744073709551616]}'}, "Expected `int` <= "),
        ({"segmentation": '{"size": [30, 40], "counts": [600, 100]}'}, "annotation 1 .* cover 700 pixels"),
        ({"segmentation": '{"size": [30, 40], "counts": "0P"}'}, "Expected a complete run-length code at `"),
        ({"segmentation": '{"size": [30, 40], "counts": "0"}'}, "annotation 1 .* cover 0 pixels"),
        ({"segmentation": '{"size": [0, 40], "counts": [0]}'}, r"Expected `int` >= 1 at .*size\[0\]"),
        ({"segmentation": '"full"'}, "Expected `.*`, got `str` at .*segmentation"),
        ({"area": "NaN"}, "NaN is no number of JSON"),
        ({"area": "-5"}, r"Expected `float` >= 0\.0 at `\$\.annotations\[0\]\.area`"),
        ({"bbox": "[0, 0, 1e30, 1]"}, r"<= 1000000\.0 at `\$\.annotations\[0\]\.bbox\[2\]`"),
        ({"bbox": "[0, 0, -2, 1]"}, r"annotation 1 .* \[x, y, width, height\]"),
        ({"bbox": "[0, 0, 2]"}, r"annotation 1 .* \[x, y, width, height\]"),
        ({"iscrowd": '"no"'}, r"got `str` at `\$\.annotations\[0\]\.iscrowd`"),
        ({"iscrowd": "2"}, r"Expected `int` <= 1 at `\$\.annotations\[0\]\.iscrowd`"),
        ({"id": "1.5"}, r"Expected `int`, got `float` at `\$\.annotations\[0\]\.id`"),
        ({"id": "[" * 100_000 + "]" * 100_000}, "Expected `int`"),
        ({"further": "[" * 100_000 + "]" * 100_000}, "nested too deeply"),
    ],
)
def test_senseless_annotations_are_refused_by_place(coco_files, fields: dict[str, str], words: str) -> None:
    images, file = coco_files([annotation(1)])
    with pytest.raises(DataError, match=f"instances\\.json.*{words}"):
        list(CocoSet(images, written(file, **fields)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"height": "1099511627776"}, r"Expected `int` <= 65536 at `\$\.images\[0\]\.height`"),
        ({"height": "48.7"}, r"Expected `int`, got `float` at `\$\.images\[0\]\.height`"),
        ({"height": "0"}, "Expected `int` >= 1"),
        ({"height": "65536", "width": "65536"}, "image 0 has 65536 x 65536 pixels; a photo has 178,956,970 at most"),
        ({"file_name": '"../../x.jpg"'}, r"image 0: the file name '../../x\.jpg' does not lie in"),
        ({"file_name": '"/etc/passwd"'}, "image 0: the file name '/etc/passwd' does not lie in"),
        ({"file_name": '"a\\u0000b.jpg"'}, "image 0: the file name .* does not lie in"),
        ({"file_name": '""'}, "image 0 has no 'file_name'"),
        ({"file_name": json.dumps("x" * 5000 + ".jpg")}, "1 of the 2 photos .* absent"),
        ({"file_name": "3"}, r"Expected `str \| null`, got `int` at `\$\.images\[0\]\.file_name`"),
        ({"id": "1"}, "ids stand more than once in 'images': 1;"),
    ],
)
def test_senseless_images_are_refused_by_place(coco_files, fields: dict[str, str], words: str) -> None:
    images, file = coco_files([annotation(1, image_id=1)])
    with pytest.raises(DataError, match=words):
        list(CocoSet(images, written(file, section="images", **fields)))


def test_an_annotation_s_id_stands_once(coco_files) -> None:
    with pytest.raises(DataError, match="ids stand more than once in 'annotations': 3; give each row an id of its own"):
        CocoSet(*coco_files([annotation(3), annotation(4), annotation(3, image_id=1)]))


def test_numbers_may_be_written_as_some_tools_write_them(coco_files) -> None:
    images, file = coco_files([annotation(1)])
    written(
        file, id="1.0", image_id="0.0", category_id='"7"', iscrowd="false", bbox="null", area="null", extra='{"a": []}'
    )
    written(file, section="images", height="30.0", license="null")
    (instance,) = next(iter(CocoSet(images, file))).instances
    assert (instance.id, instance.category_id, instance.bbox_xyxy, instance.area) == (1, 7, (5, 3, 25, 10), 140)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_refused_without_reading_it(coco_files, tmp_path: Path, kind: str) -> None:
    images, file = coco_files([annotation(1)])
    strange = tmp_path / "strange"
    os.mkfifo(strange) if kind == "fifo" else strange.mkdir()
    with pytest.raises(DataError, match="strange: the annotations must be a file, and this is none"):
        CocoSet(images, strange)
    (images / "0.jpg").unlink()
    strange.rename(images / "0.jpg")
    with pytest.raises(DataError, match=r"absent: 0\.jpg"):
        CocoSet(images, file)
    with pytest.raises(DataError, match=r"0\.jpg: the photo must be a file"):
        read_photo(images / "0.jpg")


def test_crowd_regions_are_counted_in_the_photos_that_are_asked_for(coco_files) -> None:
    crowds = [annotation(number, image_id=number % 2, iscrowd=1) for number in (2, 3, 5)]
    coco_set = CocoSet(*coco_files([annotation(1), *crowds]))
    assert (coco_set.count_crowd(1), coco_set.count_crowd(2), coco_set.num_crowd) == (1, 3, 3)
    evaluation = PromptEvaluation(coco_set, PromptProtocol(EvaluatePromptConfig("box")), max_images=1)
    assert evaluation.left_out["num_crowd"] == 1


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json"):
        CocoSet(tmp_path, tmp_path / "nothing.json")


@pytest.mark.skipif("DISTILL_DATA" not in os.environ, reason="DISTILL_DATA names no folder with coco_mini")
def test_coco_mini() -> None:
    folder = Path(os.environ["DISTILL_DATA"]) / "coco_mini"
    coco_set = CocoSet(folder / "val", folder / "instances_val.json")
    photos = list(coco_set)
    assert (len(photos), sum(len(photo.instances) for photo in photos), coco_set.num_crowd) == (99, 706, 5)
