"""Protocols that are named for who published them, beside other code that follows the same rules."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from distill.cli.main import main
from distill.config.loading import load_recipe
from distill.config.schema import EvaluateRecipe
from distill.data.rle import decode_mask, encode_mask
from distill.evaluation.edge_sam_rules import resampled_truths
from distill.evaluation.run import evaluate_recipe
from distill.models.checkpoint import load_model
from distill.models.predictor import Predictor
from tests.evaluation.independent_efficientvit_sam import BOX, CLICKS, deepest_click, mask_of, score

COCO_MORE = Path(os.environ.get("DISTILL_DATA", "")) / "coco_more"
RECIPES = {BOX: "coco_box", **{num: f"coco_point{num}" for num in CLICKS}}
SIZES = ("miou", "miou_large", "miou_medium", "miou_small")


def evaluate(model: Path, recipe: str, images: Path, annotations: Path, run: Path, *overrides: str) -> dict:
    data = [f"data.images={images}", f"data.annotations={annotations}", f"run={run}", "num_workers=0"]
    loaded = load_recipe(recipe, [*data, *overrides])
    assert isinstance(loaded, EvaluateRecipe)
    return evaluate_recipe(str(model), loaded, device="cpu")


@pytest.fixture(scope="module")
def strange_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write two photos whose annotations differ in everything that the rules ask for."""
    place = tmp_path_factory.mktemp("strange")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (height, width) in enumerate([(150, 200), (160, 120)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(place / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for i, (x, y, w, h, changes) in enumerate(
            [
                (10, 20, 40, 30, {}),
                (0, 0, 96, 96, {}),  # just large, and medium as well
                (60, 70, 32, 32, {}),  # just medium, and small as well
                (20, 30, 80, 60, {"iscrowd": 1}),
                (50, 50, 9, 9, {"area": 0.5}),  # too small, as annotated
                (0, 0, 0, 0, {"area": 3.0, "bbox": [5.5, 6.5, 2.0, 1.5]}),  # no pixel
                (70, 90, 50, 40, {"bbox": [60.5, 80.25, 200.0, 100.0]}),  # a box beyond the photo
            ]
        ):
            mask = np.zeros((height, width), bool)
            mask[y : y + h, x : x + w] = True
            row = {"id": 10 * number + i + 1, "image_id": number, "bbox": [x, y, w, h], "category_id": 1}
            row |= {"segmentation": encode_mask(mask), "area": float(mask.sum()), "iscrowd": 0, **changes}
            annotations.append(row)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (place / "truth.json").write_text(json.dumps(content))
    return place, place / "truth.json"


def test_efficientvit_sam_on_every_strange_annotation(teacher_file, strange_set, tmp_path):
    _check_efficientvit_sam(teacher_file, strange_set, tmp_path)


@pytest.mark.skipif(not COCO_MORE.is_dir(), reason="needs DISTILL_DATA, a directory with coco_more")
def test_efficientvit_sam_on_photos_of_coco(teacher_file, tmp_path):
    """Two photos with a crowd region, and the two smallest and the two largest annotations of each beside it."""
    content = json.loads((COCO_MORE / "instances_val.json").read_text())
    of_photo: dict[int, list[dict]] = {}
    for row in sorted(content["annotations"], key=lambda row: row["area"]):
        of_photo.setdefault(row["image_id"], []).append(row)
    crowded = sorted(image_id for image_id, rows in of_photo.items() if any(row["iscrowd"] for row in rows))[:2]
    rows = [row for image_id in crowded for row in of_photo[image_id]]
    edges = [row["id"] for image_id in crowded for row in of_photo[image_id][:2] + of_photo[image_id][-2:]]
    content["annotations"] = [row for row in rows if row["iscrowd"] or row["id"] in edges]
    content["images"] = [image for image in content["images"] if image["id"] in crowded]
    (tmp_path / "few.json").write_text(json.dumps(content))
    _check_efficientvit_sam(teacher_file, (COCO_MORE / "val", tmp_path / "few.json"), tmp_path)


def _check_efficientvit_sam(teacher_file: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    expected = score(Predictor(load_model(str(teacher_file))), *data)
    for crowds in (True, False):
        for prompt, name in RECIPES.items():
            changes = [] if crowds else ["instances.crowds=false"]
            run = tmp_path / f"{name}_{crowds}"
            found = evaluate(teacher_file, f"eval/efficientvit_sam/{name}", *data, run, *changes)
            for key in SIZES:
                wanted = expected[crowds][prompt][key]
                assert found[key] == (None if math.isnan(wanted) else pytest.approx(wanted, abs=5e-5)), (name, key)
    assert expected[True] != expected[False]


def test_sam_and_ritm_click_by_click(teacher_file, strange_set, tmp_path):
    """The clicks of a loop over single prompts, with the last logits fed back and one mask from the second click on."""
    place, annotations = strange_set
    content = json.loads(annotations.read_text())
    content["annotations"] = content["annotations"][:3]
    content["images"] = content["images"][:1]
    (tmp_path / "few.json").write_text(json.dumps(content))
    predictor = Predictor(load_model(str(teacher_file)))
    predictor.set_image(np.array(Image.open(place / "0.png")))
    truths = [mask_of(row["segmentation"], 150, 200) for row in content["annotations"]]
    wanted = np.array([ious_of_fed_clicks(predictor, truth, 20) for truth in truths])  # (3, 20)
    data = place, tmp_path / "few.json"

    sam = evaluate(teacher_file, "eval/sam/coco_clicks", *data, tmp_path / "sam", "fuse=false")
    assert [sam[f"miou_click{k + 1}"] for k in range(9)] == pytest.approx(wanted[:, :9].mean(0), abs=5e-5)
    assert sam["miou"] == sam["miou_click9"] and "miou_click10" not in sam

    goals = [f"prompt.noc=[{np.sort(wanted.max(1))[1]:.3f},0.999]", "prompt.stop_iou=1"]  # one that some masks reach
    ritm = evaluate(teacher_file, "eval/ritm/noc", *data, tmp_path / "ritm", "fuse=false", *goals)
    target = float(goals[0].split("[")[1].split(",")[0])
    clicks = [next((k + 1 for k, iou in enumerate(ious) if iou >= target), 20) for ious in wanted]
    assert ritm[f"noc{100 * target:g}"] == pytest.approx(np.mean(clicks))
    assert ritm[f"noc{100 * target:g}_limit"] == clicks.count(20)
    assert (ritm["noc99.9"], ritm["noc99.9_limit"]) == (20, 3)


def ious_of_fed_clicks(predictor: Predictor, truth: np.ndarray, num: int) -> list[float]:
    mask, is_free = np.zeros_like(truth), np.ones_like(truth)
    points: list[tuple[int, int]] = []
    labels: list[int] = []
    logits, ious = None, []
    for _ in range(num):
        point, label = deepest_click(truth, mask, is_free)
        points.append(point)
        labels.append(label)
        masks, predicted_iou, low_res = predictor.predict(
            point_coords=points, point_labels=labels, mask_input=logits, multimask_output=len(points) == 1
        )
        best = predicted_iou.argmax()
        mask, logits = masks[best], low_res[best][None]
        ious.append((mask & truth).sum() / (mask | truth).sum())
    return ious


def test_the_page_draws_clicks_of_published_protocols(teacher_file, strange_set, tmp_path):
    run = tmp_path / "run"
    limits = ["prompt.num_clicks=5", "data.max_images=1"]
    found = evaluate(teacher_file, "eval/ritm/noc", *strange_set, run, *limits)
    assert found["rules"].startswith('multimask_later="single" prompt.click_at="index"')
    assert main(["compare", str(run), "--no-bench", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "By clicks" in page and "5 clicks by RITM" in page and ">clicks to</a> 85 % IoU" in page
    assert "miou_click5" in (tmp_path / "out" / "table.csv").read_text()


def test_edge_sam_compares_masks_that_went_to_1024_pixels_and_back(teacher_file, strange_set, tmp_path):
    place, annotations = strange_set
    rows = [row for row in json.loads(annotations.read_text())["annotations"] if row["image_id"] == 0]
    rows = [row for row in rows if not row["iscrowd"] and mask_of(row["segmentation"], 150, 200).any()]
    predictor = Predictor(load_model(str(teacher_file)))
    predictor.set_image(np.array(Image.open(place / "0.png")))
    by_id = {}
    for row in rows:
        x, y, width, height = row["bbox"]
        mask = predictor.predict(box=[x, y, x + width, y + height], multimask_output=False)[0][0]
        truth = torch.from_numpy(mask_of(row["segmentation"], 150, 200)).float()[None, None]
        large = interpolate(truth, (768, 1024), mode="nearest")
        back = (interpolate(large, (150, 200), mode="bilinear") > 0)[0, 0].numpy()
        by_id[row["id"]] = (mask & back).sum() / (mask | back).sum()
    run = tmp_path / "run"
    found = evaluate(teacher_file, "eval/edge_sam/coco_box", *strange_set, run, "data.max_images=1")
    lines = [json.loads(line) for line in (run / "instances.jsonl").read_text().splitlines()]
    ours = {line["annotation_id"]: line for line in lines}
    assert {i: ours[i]["click_ious"][0] for i in by_id} == pytest.approx(by_id, abs=5e-5)
    assert found["miou_click0"] == pytest.approx(np.mean([line["click_ious"][0] for line in lines]))
    assert {"miou_click1", "miou_click2"} < found.keys() and "miou_click3" not in found
    clicks = [(line, xy, label) for line in lines for xy, label in zip(*_clicks_of(line), strict=True)]
    assert len(clicks) > 2
    for line, (x, y), label in clicks:
        assert x * 1024 / 200 % 4 == pytest.approx(0, abs=1e-6) or x * 1024 / 200 % 4 == pytest.approx(4)
        near = mask_of(next(row for row in rows if row["id"] == line["annotation_id"])["segmentation"], 150, 200)
        window = near[max(0, int(y) - 2) : int(y) + 3, max(0, int(x) - 2) : int(x) + 3]
        assert window.any() if label else not window.all()
    again = evaluate(teacher_file, "eval/edge_sam/coco_box", *strange_set, tmp_path / "again", "data.max_images=1")
    assert again["miou_click2"] == found["miou_click2"]  # the draws belong to the annotation


def _clicks_of(line: dict) -> tuple[list, list]:
    return line["prompt"]["points_xy"], line["prompt"]["labels"]


@pytest.mark.parametrize(("radius", "iou"), [(8, 0.895), (16, 0.944), (48, 0.986)])
def test_edge_sams_truth_is_larger_than_the_mask(radius, iou):
    """The IoUs were measured with the published functions, on disks in a photo of 480 x 640 pixels."""
    y, x = np.ogrid[:480, :640]
    disk = (y - 240) ** 2 + (x - 320) ** 2 <= radius**2
    (code,) = resampled_truths([encode_mask(disk)])
    grown = decode_mask(code).astype(bool)
    assert (grown & disk).sum() == disk.sum()
    assert disk.sum() / grown.sum() == pytest.approx(iou, abs=0.01)
