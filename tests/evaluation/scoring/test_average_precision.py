"""AP and AR are pycocotools' own, LVIS's are the lvis package's, to the last digit."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from distill.data.coco import CocoSet
from distill.data.lvis import LvisSet
from distill.data.rle import encode_mask
from distill.errors import DataError
from distill.evaluation.scoring.average_precision import (
    COCO_METRICS,
    average_precision,
    average_recall,
    resampled_precision,
)
from distill.evaluation.scoring.lvis_rules import best_of_each_photo

IDS = range(100, 108)
HW = (150, 200)
CATEGORIES = [{"id": id_, "name": f"c{id_}", "frequency": "rcf"[id_ % 3]} for id_ in (1, 2, 3, 5, 7, 8)]


def rectangle(hw: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def random_box(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box that is small, medium or large by COCO's areas."""
    side = int(rng.choice([12, 50, 110]))
    width, height = (int(value) for value in rng.integers(side * 3 // 4, side * 5 // 4, 2))
    x, y = int(rng.integers(0, HW[1] - width)), int(rng.integers(0, max(1, HW[0] - height)))
    return x, y, x + width, min(HW[0], y + height)


def write_made_set(directory: Path, *, num_photos: int = 8, seed: int = 0) -> dict[str, Any]:
    """Write set.json, with LVIS's fields, and black photos; returns its content."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(num_photos):
        lvis = {"neg_category_ids": [2, 8], "not_exhaustive_category_ids": [1, 5][: i % 3]}
        images.append({"id": 100 + i, "file_name": f"{i}.png", "height": HW[0], "width": HW[1], **lvis})
        Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(directory / f"{i}.png")
        for _ in range(int(rng.integers(2, 7))):
            box = random_box(rng)
            mask = rectangle(HW, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + i,
                    "category_id": int(rng.choice([1, 2, 3, 5, 7])),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": encode_mask(mask),
                    "area": int(mask.sum()),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (directory / "set.json").write_text(json.dumps(content))
    return content


def made_results(content: dict[str, Any], *, seed: int = 1) -> list[dict[str, Any]]:
    """Return masks near most instances, some of another category, and false ones; several with equal scores."""
    rng = np.random.default_rng(seed)
    results = []
    for row in content["annotations"]:
        if rng.random() < 0.85:
            x, y, width, height = row["bbox"]
            dx, dy = (int(value) for value in rng.integers(-5, 6, 2))
            box = (max(0, x + dx), max(0, y + dy), x + dx + width, y + dy + height)
            category = row["category_id"] if rng.random() < 0.9 else 7
            results.append(_result(row["image_id"], category, rectangle(HW, box), rng))
    for image in content["images"]:
        for category in (1, 2, 8, 5):
            results.append(_result(image["id"], category, rectangle(HW, random_box(rng)), rng))
    return [row for row in results if row is not None]


def _result(image_id: int, category: int, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any] | None:
    score = round(float(rng.random()), 1)
    row = {"image_id": image_id, "category_id": category, "segmentation": encode_mask(mask), "score": score}
    return row if mask.any() else None


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Write a set, and detections beside it."""
    results = made_results(write_made_set(tmp_path))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path, results


def open_made(kind: type[CocoSet], directory: Path) -> CocoSet:
    coco_set = kind(directory, directory / "set.json")
    list(coco_set)
    return coco_set


def pycocotools_eval(directory: Path, **params: Any) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(directory / "set.json"))
        evaluator = COCOeval(truth, truth.loadRes(str(directory / "results.json")), "segm")
        for name, value in params.items():
            setattr(evaluator.params, name, value)
        evaluator.evaluate()
        evaluator.accumulate()
        if not params:
            evaluator.summarize()
    return evaluator


def test_ap_is_pycocotools_own(made):
    directory, results = made
    found = average_precision(open_made(CocoSet, directory), results, IDS)
    expected = pycocotools_eval(directory).stats
    assert [found.metrics[name] for name in COCO_METRICS] == list(expected)
    assert 0.1 < expected[0] < 0.9 and expected[5] > 0 and expected[8] > 0
    assert all(low <= found.metrics[name] <= high for name, (low, high) in found.intervals().items())
    assert "segmentation" in results[0] and "area" not in results[0]  # pycocotools writes into copies


def test_ap_of_the_first_photos_is_that_of_a_file_of_them(made):
    directory, results = made
    found = average_precision(open_made(CocoSet, directory), results, IDS[:3])
    content = json.loads((directory / "set.json").read_text())
    content["images"] = content["images"][:3]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in IDS[:3]]
    (directory / "set.json").write_text(json.dumps(content))
    (directory / "results.json").write_text(json.dumps([row for row in results if row["image_id"] in IDS[:3]]))
    assert [found.metrics[name] for name in COCO_METRICS] == [
        None if value == -1 else value for value in pycocotools_eval(directory).stats
    ]


def test_an_annotation_of_id_0_counts(made):
    """Count a match with the id 0, which pycocotools alone takes for no match."""
    directory, results = made
    expected = average_precision(open_made(CocoSet, directory), results, IDS).metrics
    content = json.loads((directory / "set.json").read_text())
    for row in content["annotations"]:
        row["id"] -= 1
    (directory / "set.json").write_text(json.dumps(content))
    assert average_precision(open_made(CocoSet, directory), results, IDS).metrics == expected


def test_annotations_without_categories_are_refused(made):
    directory, results = made
    content = json.loads((directory / "set.json").read_text())
    (directory / "set.json").write_text(json.dumps({**content, "categories": []}))
    with pytest.raises(DataError, match="'categories'"):
        average_precision(open_made(CocoSet, directory), results, IDS)


def test_recall_is_pycocotools_own(made):
    directory, results = made
    metrics, intervals = average_recall(open_made(CocoSet, directory), results, IDS)
    evaluator = pycocotools_eval(directory, useCats=0, maxDets=[10, 100, 1000])
    recall = evaluator.eval["recall"]  # (T, 1, A, M)
    assert [metrics[f"ar_{num}"] for num in (10, 100, 1000)] == [recall[:, 0, 0, i].mean() for i in range(3)]
    assert [metrics[f"ar{size}"] for size in ("_small", "_medium", "_large")] == [
        recall[:, 0, i, 2].mean() for i in (1, 2, 3)
    ]
    assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items()) and len(intervals) == 6


def test_a_model_that_finds_nothing_has_no_recall_and_no_precision(made):
    directory, _ = made
    coco_set = open_made(CocoSet, directory)
    for metrics, intervals in (
        average_recall(coco_set, [], IDS),
        ((found := average_precision(coco_set, [], IDS)).metrics, found.intervals()),
    ):
        assert set(metrics.values()) == {0.0} and set(intervals.values()) == {(0.0, 0.0)}


@pytest.fixture
def lvis_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the lvis package's evaluator, with what it misses in today's NumPy and on a machine without OpenCV."""
    if importlib.util.find_spec("lvis") is None:
        pytest.skip("the lvis package is not installed")
    monkeypatch.setattr(np, "float", float, raising=False)
    try:
        import cv2  # noqa: F401
    except ImportError:  # it draws with it, and scores without
        monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    from lvis import LVISEval

    return LVISEval


@pytest.mark.parametrize("many", [False, True])
def test_lvis_is_the_lvis_packages(made, lvis_eval, many):
    directory, results = made
    content = json.loads((directory / "set.json").read_text())
    content["annotations"] = [row for row in content["annotations"] if not row["iscrowd"]]
    (directory / "set.json").write_text(json.dumps(content))
    if many:  # beyond 300 on one photo
        results = results + [{**row, "image_id": 100, "score": row["score"] / 3} for row in results] * 6
    (directory / "results.json").write_text(json.dumps(results))
    theirs = lvis_eval(str(directory / "set.json"), str(directory / "results.json"), "segm")
    theirs.run()
    expected = theirs.get_results()
    found = average_precision(open_made(LvisSet, directory), results, IDS)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_rare", "ap_common", "ap_frequent")
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    assert [found.metrics[name] for name in names] == [expected[key] for key in keys]
    recalls = ("ar_300", "ar_small", "ar_medium", "ar_large")
    assert [found.metrics[name] for name in recalls] == [expected[f"AR{size}@300"] for size in ("", "s", "m", "l")]
    assert {"ap", "ap_rare", "ap_frequent"} <= set(found.intervals())


def test_a_resample_that_draws_each_photo_once_is_the_set_itself(made):
    directory, _ = made
    evaluator = pycocotools_eval(directory)
    evaluator.params.catIds = sorted(evaluator.cocoGt.getCatIds())
    found = resampled_precision(evaluator, counts=np.ones((1, len(IDS))))
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [found[name][0] for name in names] == pytest.approx(list(pycocotools_eval(directory).stats[:6]))


def test_a_resample_is_the_ap_of_a_set_with_these_photos(made):
    directory, results = made
    evaluator = pycocotools_eval(directory)
    found = resampled_precision(evaluator, counts=np.array([[1.0, 1, 0, 0, 0, 1, 0, 0]]))
    few = average_precision(open_made(CocoSet, directory), results, [100, 101, 105]).metrics
    assert found["ap"][0] == pytest.approx(few["ap"]) and found["ap50"][0] == pytest.approx(few["ap50"])


def test_the_best_detections_of_each_photo():
    rows = [{"image_id": i % 2, "score": i / 10} for i in range(8)]
    kept = best_of_each_photo(rows, 3)
    assert sorted(row["score"] for row in kept if row["image_id"] == 0) == [0.2, 0.4, 0.6]
    assert best_of_each_photo(rows, 4) == [*rows[::2], *rows[1::2]]
