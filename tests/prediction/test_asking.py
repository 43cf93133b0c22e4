"""Which photos and objects are asked about: names, prompts JSON, a detector's results, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.errors import DataError
from distill.prediction.asking import ObjectPrompt, check_prompt, read_detector_boxes, read_prompts
from distill.prediction.photos import find_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Files without content: nothing here decodes them."""
    for name in ("a.jpg", "b.png", "b.jpg", "more/a.jpg", "more/000000139.jpg", ".hidden.jpg", "notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


def test_a_folder_is_all_of_its_photos(photos):
    found = find_photos([photos])
    assert [photo.name for photo in found] == ["a", "b_jpg", "b_png", "more/000000139", "more/a"]
    assert [photo.shown for photo in found] == ["a.jpg", "b.jpg", "b.png", "more/000000139.jpg", "more/a.jpg"]


def test_patterns_and_files(photos):
    assert [photo.name for photo in find_photos([f"{photos}/*.jpg", photos / "a.jpg"])] == ["a", "b"]
    assert [photo.name for photo in find_photos([f"{photos}/more/*.jpg"])] == ["000000139", "a"]
    assert [photo.name for photo in find_photos([photos / "absent.jpg"])] == ["absent"]  # reading it says so


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{}/*.webp"], "no file fits this pattern"),
        (["{}/empty"], "no photo in this folder"),
        (["{}/a.jpg", "{}/more/a.jpg"], "both would be named a_jpg; give the folder that holds both"),
    ],
)
def test_what_cannot_be_photos(photos, given, message):
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_photos([text.format(photos) for text in given])


def test_prompts_of_many_photos(photos, tmp_path):
    rows = [
        {"photo": "a.jpg", "box": [1, 2, 30, 40]},
        {"photo": "more/000000139.jpg", "points": [[5, 6], [7, 8.5]], "labels": [1, 0], "category_id": 7},
        {"photo": "a", "points": [[1, 1]], "mask": "masks/a.png"},
        {"photo": "elsewhere.jpg", "box": [1, 2, 3, 4]},
    ]
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(rows))
    given = find_photos([photos])
    asked = read_prompts(file, given)
    assert asked.by_photo["a"] == [
        ObjectPrompt((1, 2, 30, 40)),
        ObjectPrompt(None, ((1, 1),), (1,), tmp_path / "masks" / "a.png"),
    ]
    assert asked.by_photo["more/000000139"] == [ObjectPrompt(None, ((5, 6), (7, 8.5)), (1, 0), None, 7)]
    assert asked.notes[0].endswith("1 prompts of " + f"{file} are of photos that are not given: elsewhere.jpg")
    assert "3 photos have no prompt" in asked.notes[1] and asked.notes[1].endswith("b_jpg, b_png, more/a")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"photo": "a.jpg"}, "object 0: it has no box, points or mask"),
        ({"photo": "a.jpg", "points": [[1, 2]], "labels": [1, 0]}, "2 labels for 1 points"),
        ({"photo": "a.jpg", "box": [1, 2, 3]}, "length >= 4"),
        ({"photo": "a.jpg", "boxes": [[1, 2, 3, 4]]}, "unknown field `boxes`"),
        ({"photo": "a.jpg", "points": [[1, 2]], "labels": [2]}, "<= 1"),
        ({"photo": "a.jpg", "mask": "../secret.png"}, "does not lie in"),
        ({"photo": "c.jpg", "box": [1, 2, 3, 4]}, r"none of its 1 prompts is of a given photo \(it names c.jpg\)"),
    ],
)
def test_prompts_that_cannot_be_meant(photos, tmp_path, row, message):
    (tmp_path / "prompts.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / "prompts.json", find_photos([photos]))


def detection(image_id: int | str, score: float, category_id: int = 3) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": [10, 20, 30, 5], "score": score}


def test_boxes_of_a_detector(photos, tmp_path):
    rows = [detection(139, 0.9), detection("a.jpg", 0.8), detection("more/a", 0.2), detection(77, 0.9)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    asked = read_detector_boxes(tmp_path / "results.json", find_photos([photos]), min_score=0.5)
    assert asked.by_photo["more/000000139"] == [ObjectPrompt((10, 20, 40, 25), category_id=3, score=0.9)]
    assert set(asked.by_photo) == {"a", "more/000000139"}
    assert "1 boxes of" in asked.notes[0] and "have a score below 0.5" in asked.notes[0]
    assert "1 prompts of" in asked.notes[1] and asked.notes[1].endswith("photos that are not given: 77")


def test_image_ids_of_annotations(photos, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps([detection(77, 0.9)]))
    images = [{"id": 77, "file_name": "b.png", "height": 5, "width": 5}]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": []}))
    asked = read_detector_boxes(tmp_path / "results.json", find_photos([photos]), images=tmp_path / "set.json")
    assert set(asked.by_photo) == {"b_png"}
    with pytest.raises(DataError, match="all 1 boxes on these photos have a score below 0.95"):
        read_detector_boxes(
            tmp_path / "results.json", find_photos([photos]), images=tmp_path / "set.json", min_score=0.95
        )


def test_prompts_lie_on_the_photo():
    assert check_prompt(ObjectPrompt((-3, 5, 90, 40), ((80, 48),), (1,)), (48, 80)) is None
    assert "--point 81 20 lies outside" in (check_prompt(ObjectPrompt(None, ((81, 20),), (1,)), (48, 80)) or "")
    assert "is empty" in (check_prompt(ObjectPrompt((60, 5, 10, 40)), (48, 80)) or "")
