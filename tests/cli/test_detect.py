"""`distill detect`: from photos to a detector's boxes, and by them to masks and AP."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.cli.main import main
from distill.data.coco import CocoSet
from distill.data.detections import Detections
from distill.data.rle import encode_mask
from distill.errors import DataError
from distill.evaluation.detect_photos import categories_of_classes, coco_categories
from distill.evaluation.yolox_detector import GREY
from distill.lock import hold_directory
from tests.fixtures.yolox_graph import write_graph

HW = (64, 64)  # of the photos, and of the graph's input
COLOURS = {1: (255, 0, 0), 3: (0, 0, 255)}  # category -> colour: the graph's classes, in this order
SQUARES = [(8, 40, 1), (40, 16, 3), (24, 24, 1)]  # X, Y and category of a square of 8 pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write three photos with a square each, and annotations of what the graph takes for the object."""
    (tmp_path / "photos").mkdir()
    images, annotations = [], []
    for number, (x, y, category) in enumerate(SQUARES):
        pixels = np.full((*HW, 3), GREY, np.uint8)
        pixels[y : y + 8, x : x + 8] = COLOURS[category]
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        mask = np.zeros(HW, bool)
        mask[y - 4 : y + 12, x : x + 8] = True
        images.append({"id": 100 + number, "file_name": f"{number}.png", "height": 64, "width": 64})
        row = {"id": number + 1, "image_id": 100 + number, "category_id": category, "iscrowd": 0, "area": 128}
        annotations.append({**row, "bbox": [x, y - 4, 8, 16], "segmentation": encode_mask(mask)})
    categories = [{"id": 3, "name": "blue"}, {"id": 1, "name": "red"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path / "photos"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "detector.onnx")


def detect(graph: Path, photos: Path, *options: str, out: str = "found.json", annotated: bool = True) -> int:
    truth = ["--annotations", f"{photos.parent}/set.json"] if annotated else []
    return main(["detect", str(graph), str(photos), *truth, "--out", f"{photos.parent}/{out}", *options])


def test_from_photos_to_ap(photos, graph, tmp_path, capsys):
    assert detect(graph, photos, "--score", "0.9") == 0
    printed = capsys.readouterr().out
    assert "2 classes, input of 64 x 64 pixels, offsets to its grids" in printed
    assert "3 boxes on 3 photos, written to" in printed and "distill evaluate MODEL eval/coco_detections" in printed
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (100 + number, category, [x, y - 4, 8, 16]) for number, (x, y, category) in enumerate(SQUARES)
    ]
    assert all(0.98 < row["score"] <= 1 for row in rows)
    assert not (tmp_path / "found.json.partial").exists()
    data = [f"data.images={photos}", f"data.annotations={tmp_path}/set.json"]
    data += [f"data.detections={tmp_path}/found.json", f"run={tmp_path}/run", "num_workers=0"]
    assert main(["evaluate", "oracle", "eval/coco_detections", "--device", "cpu", *data]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["ap"], metrics["num_detections"]) == (1, 3)


def test_without_annotations_the_ids_are_the_names_of_the_files(photos, graph, tmp_path):
    assert detect(graph, photos, "--score", "0.9", "--max-images", "2", annotated=False) == 0
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [("0", 1), ("1", 2)]
    content = json.loads((tmp_path / "set.json").read_text())
    content["categories"].append({"id": 2, "name": "blue too"})
    (tmp_path / "set.json").write_text(json.dumps(content))
    assert set(Detections(tmp_path / "found.json", CocoSet(photos, tmp_path / "set.json")).by_photo) == {"0", "1"}


def test_a_stopped_job_goes_on(photos, graph, tmp_path, capsys):
    assert detect(write_graph(graph, batch=1), photos, "--most", "2", out="whole.json") == 0
    good = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(good[: len(good) // 2])
    assert detect(graph, photos, "--most", "2") == 2
    assert "2.png: cannot be decoded" in capsys.readouterr().err and not (tmp_path / "found.json").exists()
    with open(tmp_path / "found.json.partial" / "photos.jsonl", "a") as file:
        file.write('{"image": "2", "rows": [{"ima')  # a line that a kill cut short
    assert detect(graph, photos) == 2
    assert "begun by another job (most was 2 and is 100)" in capsys.readouterr().err
    os.replace(photos / "0.png", tmp_path / "aside.png")
    (photos / "2.png").write_bytes(good)
    (photos / "0.png").write_bytes(b"no photo: it was finished before, so that nothing reads it again")
    with hold_directory(tmp_path / "found.json.partial", give="--out FILE"):
        assert detect(graph, photos, "--most", "2") == 2
        assert "is in use by" in capsys.readouterr().err
    assert detect(graph, photos, "--most", "2") == 0
    assert (tmp_path / "found.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert detect(graph, photos, "--most", "2") == 2
    assert "found.json: exists already; remove it" in capsys.readouterr().err


def test_classes_that_the_annotations_lack_are_left_out_and_counted(photos, graph, tmp_path, capsys):
    content = json.loads((tmp_path / "set.json").read_text())
    content["categories"].append({"id": 7, "name": "green"})
    (tmp_path / "set.json").write_text(json.dumps(content))
    assert detect(graph, photos, "--score", "0.9") == 2
    assert "the detector has 2 classes, and the annotations 3 categories; name the classes" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("orange\nblue\n")
    assert detect(graph, photos, "--score", "0.9", "--class-names", f"{tmp_path}/names.txt") == 0
    printed = capsys.readouterr().out
    assert "1 box on 3 photos, 2 of them without one" in printed and "2 boxes of classes that" in printed
    assert [row["category_id"] for row in json.loads((tmp_path / "found.json").read_text())] == [3]
    assert main(["detect", str(graph), str(photos), "--lvis", "--out", f"{tmp_path}/x.json"]) == 2
    assert "--lvis says what --annotations FILE holds" in capsys.readouterr().err


def test_categories_of_classes():
    coco = coco_categories()
    assert len(coco) == 80 and (coco[1], coco[13], coco[90]) == ("person", "stop sign", "toothbrush")
    assert categories_of_classes(3, {9: "a", 2: "b", 5: "c"}, None) == [2, 5, 9]
    assert categories_of_classes(80, None, None)[-1] == 90
    assert categories_of_classes(3, None, None) == [1, 2, 3]
    assert [id_ for id_ in categories_of_classes(80, {4: "dog", 1: "kite", 2: "ufo"}, None) if id_] == [4, 1]
    assert categories_of_classes(2, {4: "dog", 1: "ufo"}, ["ufo", "dog"]) == [1, 4]
    with pytest.raises(DataError, match="has 1 names, and the detector 2 classes"):
        categories_of_classes(2, {4: "dog"}, ["dog"])
    with pytest.raises(DataError, match=r"no class of the detector \(person, .*\) is a category .* \(nucleus\)"):
        categories_of_classes(80, {1: "nucleus"}, None)
