"""AP by a detector's boxes: of real boxes as pycocotools has it, and by LVIS's rules as worked out by hand."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from distill.cli.main import main
from distill.data.rle import encode_mask
from distill.evaluation.scoring.average_precision import COCO_METRICS

DATA = Path(os.environ.get("DISTILL_DATA", "nowhere"))
NUM_PHOTOS = 3
LEAST_SCORE = 0.05  # of the excerpt's boxes: each costs a mask


def evaluate(model: str | Path, recipe: str, images: Path, annotations: Path, boxes: Path, run: Path) -> dict[str, Any]:
    data = [f"data.images={images}", f"data.annotations={annotations}", f"data.detections={boxes}", f"run={run}"]
    assert main(["evaluate", str(model), recipe, "--device", "cpu", *data, "num_workers=0"]) == 0
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


@pytest.mark.skipif(not DATA.is_dir(), reason="needs DISTILL_DATA, a directory with coco_mini and coco_more")
@pytest.mark.parametrize("name", ["coco_mini", "coco_more"])
def test_ap_of_real_boxes_is_pycocotools(teacher_file, tmp_path, name):
    """YOLOX-nano's boxes on the first photos, one of them with a crowd region; the file also has the other photos'."""
    content = json.loads((DATA / name / "instances_val.json").read_text())
    crowded = next(row["image_id"] for row in content["annotations"] if row["iscrowd"])
    images = sorted(content["images"], key=lambda image: (image["id"] != crowded, image["id"]))[:NUM_PHOTOS]
    content["images"], ids = images, {image["id"] for image in images}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    rows = json.loads((DATA / name / "detections_yolox_nano_val.json").read_text())
    rows = [row for row in rows if row["score"] >= LEAST_SCORE]
    for file, part in (("few.json", content), ("boxes.json", rows)):
        (tmp_path / file).write_text(json.dumps(part))
    run = tmp_path / "run"
    found = evaluate(
        teacher_file, "eval/coco_detections", DATA / name / "val", tmp_path / "few.json", tmp_path / "boxes.json", run
    )
    num_here = sum(row["image_id"] in ids for row in rows)
    assert (found["num_detections"] + found["num_outside"], found["num_foreign"]) == (num_here, len(rows) - num_here)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "few.json"))
        judge = COCOeval(truth, truth.loadRes(str(run / "results.json")), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert [-1 if found[key] is None else found[key] for key in COCO_METRICS] == list(judge.stats)


@pytest.mark.parametrize("recipe", ["eval/lvis_detections", "eval/efficientvit_sam/lvis_vitdet"])
def test_lvis_counts_300_boxes_of_a_photo_and_averages_by_frequency(tmp_path, recipe):
    """Four objects of rare, common and frequent categories, with masks that are the truth."""
    height, width = 40, 60
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "1.png")
    frequencies = {1: "r", 2: "c", 3: "f", 4: "f", 5: "c", 6: "c"}  # the photo has no object of 5 and 6
    categories = [{"id": id_, "name": f"c{id_}", "frequency": letter} for id_, letter in frequencies.items()]
    image = {"id": 1, "file_name": "1.png", "height": height, "width": width}
    image |= {"neg_category_ids": [5], "not_exhaustive_category_ids": [3]}
    boxes = {category: [15 * (category - 1), 5, 10, 10] for category in (1, 2, 3, 4)}
    annotations = []
    for category, (x, y, w, h) in boxes.items():
        mask = np.zeros((height, width), bool)
        mask[y : y + h, x : x + w] = True
        row = {"id": category, "image_id": 1, "category_id": category, "bbox": [x, y, w, h], "area": 100}
        annotations.append({**row, "segmentation": encode_mask(mask)})
    (tmp_path / "lvis.json").write_text(
        json.dumps({"images": [image], "annotations": annotations, "categories": categories})
    )
    elsewhere = [0, 25, 10, 10]
    found = [(1, boxes[1], 0.9), (3, elsewhere, 0.85), (3, boxes[3], 0.8), (4, elsewhere, 0.75), (4, boxes[4], 0.7)]
    found += [(5, elsewhere, 0.65), (6, elsewhere, 0.65)]  # looked for in vain, and not looked for
    found += [(1, elsewhere, 0.5)] * 293  # after the rare object is found, so that its AP stays
    found += [(2, boxes[2], 0.1)]  # the 301st: it comes too late
    rows = [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in found]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    metrics = evaluate("oracle", recipe, tmp_path, tmp_path / "lvis.json", tmp_path / "boxes.json", tmp_path / "run")
    # 1: found first. 2: too late. 3: a wrong box before it, which is ignored, as not all of its objects are annotated.
    # 4: a wrong box before it, which counts. 5 and 6 have no object, and so no AP.
    assert metrics["num_detections"] == 300
    assert metrics["ap_rare"] == pytest.approx(1) and metrics["ap_common"] == 0
    assert metrics["ap_frequent"] == pytest.approx((1 + 0.5) / 2)
    assert metrics["ap"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert metrics["ar_300"] == pytest.approx(3 / 4)
