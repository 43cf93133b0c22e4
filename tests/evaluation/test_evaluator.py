"""The evaluator, with a tiny model and photos whose answers can be worked out another way."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config.schema import EvaluatePromptConfig
from distill.data.coco import CocoSet
from distill.data.rle import decode_mask, encode_mask
from distill.errors import DataError, DistillError
from distill.evaluation.evaluator import (
    PromptEvaluation,
    evaluate_model,
    evaluate_photo,
    evaluate_photos,
    photos_with_instances,
)
from distill.evaluation.predictors import ModelPredictor, PhotoPrompts, baseline
from distill.evaluation.prompting import InstanceScore, PromptProtocol
from distill.evaluation.summary import score_intervals, summarize
from distill.evaluation.worker_pool import WorkerPool
from distill.geometry import boxes_to_prompt_frame, letterbox, masks_to_original
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.prompts.types import POSITIVE, Prompts

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
BOX = PromptProtocol(EvaluatePromptConfig("box"))
CLICKS = PromptProtocol(EvaluatePromptConfig("point", num_clicks=3), multimask="best")
COCO_MINI = Path(os.environ.get("DISTILL_DATA", "")) / "coco_mini"


def rectangle(hw: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def write_set(directory: Path, photos: dict[str, tuple[int, int]], masks: list[tuple[str, np.ndarray]]) -> CocoSet:
    """Write photos of noise, by name and (height, width), and one instance per (name, mask)."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    ids = {name: i for i, name in enumerate(photos)}
    for name, (height, width) in photos.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(directory / f"{name}.png")
        images.append({"id": ids[name], "file_name": f"{name}.png", "height": height, "width": width})
    for i, (name, mask) in enumerate(masks):
        rows, columns = mask.nonzero()
        box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        row = {"id": 10 + i, "image_id": ids[name], "bbox": box, "segmentation": encode_mask(mask)}
        annotations.append({**row, "area": int(mask.sum()), "iscrowd": 0, "category_id": 1})
    (directory / "set.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return CocoSet(directory, directory / "set.json")


@pytest.fixture
def coco_set(tmp_path: Path) -> CocoSet:
    wide, tall = (60, 80), (90, 50)
    masks = [
        ("wide", rectangle(wide, (10, 10, 40, 30))),
        ("wide", rectangle(wide, (0, 0, 80, 60))),
        ("wide", rectangle(wide, (50, 40, 56, 52))),
        ("tall", rectangle(tall, (5, 20, 45, 80))),
    ]
    return write_set(tmp_path, {"wide": wide, "tall": tall, "without": (40, 40)}, masks)


@pytest.fixture
def model() -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_from_spec(SPEC)


def test_a_box_by_hand(model, coco_set):
    photo = next(photo for photo in coco_set if photo.key == "wide")
    score = evaluate_photo(model, photo, BOX)[0]
    assert (score.image, score.annotation_id, score.area) == ("wide", 10, 600)
    assert score.prompt == {"box_xyxy": [10, 10, 40, 30]}
    pixels = letterbox(np.asarray(Image.open(photo.path)), 64)[None]
    box = boxes_to_prompt_frame(torch.tensor([[10.0, 10, 40, 30]]), (60, 80), 128)
    with torch.no_grad():
        logits, predicted_iou = model.decode(model.encode(pixels), Prompts(torch.tensor([0]), box), multimask=False)
    mask = masks_to_original(logits, (60, 80), 128)[0, 0].numpy() > 0
    truth = rectangle((60, 80), (10, 10, 40, 30))
    assert score.iou == pytest.approx((mask & truth).sum() / (mask | truth).sum())
    assert score.predicted_iou == pytest.approx(predicted_iou.item(), abs=1e-5)


@pytest.mark.parametrize("protocol", [BOX, CLICKS], ids=["box", "clicks"])
def test_prompts_per_batch_do_not_change_the_scores(model, coco_set, protocol):
    small = PromptProtocol(protocol.prompt, protocol.multimask, prompt_batch_size=2)
    for photo in photos_with_instances(coco_set):
        for one, other in zip(evaluate_photo(model, photo, protocol), evaluate_photo(model, photo, small), strict=True):
            assert one.prompt == other.prompt
            assert one.iou == pytest.approx(other.iou, abs=1e-4)


def test_clicks_lie_where_the_protocol_puts_them(model, coco_set):
    photo = next(photo for photo in coco_set if photo.key == "wide")
    truth = decode_mask(photo.instances[0].rle)
    prompt = evaluate_photo(model, photo, CLICKS)[0].prompt
    assert len(prompt["points_xy"]) == len(prompt["labels"]) <= 3
    # rows 10..29: all of 19 and 20 are as deep; the first of the columns that are 10 from the left
    assert (prompt["points_xy"][0], prompt["labels"][0]) == ([19.5, 19.5], POSITIVE)
    for (x, y), label in zip(prompt["points_xy"], prompt["labels"], strict=True):
        assert truth[int(y), int(x)] == label


def test_one_click_is_one_prompt(model, coco_set):
    one = PromptProtocol(EvaluatePromptConfig("point"), multimask="best")
    for photo in photos_with_instances(coco_set):
        for score in evaluate_photo(model, photo, one):
            assert score.prompt["labels"] == [POSITIVE]


def test_no_click_follows_a_right_mask(coco_set):
    """Expect one click of five, because the oracle is right at once."""
    five = PromptProtocol(EvaluatePromptConfig("point", num_clicks=5))
    for photo in photos_with_instances(coco_set):
        for score in evaluate_photo(baseline("oracle"), photo, five):
            assert score.prompt["labels"] == [POSITIVE]
            assert (score.iou, score.boundary_iou, score.predicted_iou) == (1, 1, 1)


def test_an_oracle_chooses_by_the_true_iou(model, coco_set):
    """Expect scores that are never below the model's own choice, nor below token 1, 2 or 3 alone."""
    box = EvaluatePromptConfig("box")
    for photo in photos_with_instances(coco_set):
        own = evaluate_photo(model, photo, PromptProtocol(box, "best"))
        best = evaluate_photo(model, photo, PromptProtocol(box, "oracle"))
        assert all(one.iou >= other.iou for one, other in zip(best, own, strict=True))
        assert any(one.predicted_iou != other.predicted_iou for one, other in zip(best, own, strict=True))


def test_a_fused_encoder_changes_nothing_that_counts(model, coco_set):
    for photo in photos_with_instances(coco_set):
        plain = evaluate_photo(ModelPredictor(model), photo, BOX)
        fused = evaluate_photo(ModelPredictor(model, fuse_norms=True), photo, BOX)
        for one, other in zip(plain, fused, strict=True):
            assert one.iou == pytest.approx(other.iou, abs=1e-3)
            assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-4)


@pytest.mark.parametrize("name", ["fill-box", "fill-ellipse"])
def test_filling_boxes_needs_boxes(coco_set, name):
    with pytest.raises(DistillError, match=f"'{name}' answers boxes alone"):
        evaluate_photo(baseline(name), photos_with_instances(coco_set)[0], CLICKS)


def test_the_ellipse_touches_its_box_and_has_its_area():
    box = np.array([[10, 20, 50, 50], [3, 4, 4, 5], [30, 10, 90, 40]], np.float32)
    filled = baseline("fill-ellipse").encode(None, (60, 80))
    found = asyncio.run(filled.predict(PhotoPrompts(boxes_xyxy=box), "single", 16))
    whole, pixel, cut = (decode_mask(of_prompt[0]) for of_prompt in found.masks)
    ys, xs = np.nonzero(whole)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (10, 20, 50, 50)
    assert whole.sum() == pytest.approx(np.pi / 4 * 40 * 30, rel=0.01)
    assert (whole[20:50, 10:50] == whole[20:50, 10:50][::-1, ::-1]).all()
    assert pixel.sum() == pixel[4, 3] == 1  # a box of one pixel
    assert cut.any() and cut.shape == (60, 80)  # the photo ends before the box does


def test_the_whole_set(model, coco_set):
    calls: list[list[InstanceScore]] = []
    metrics = evaluate_model(model, coco_set, BOX, on_photo=calls.append)
    assert [[score.image for score in scores] for scores in calls] == [["tall"], ["wide"] * 3]
    ious = [score.iou for scores in calls for score in scores]
    assert metrics["miou"] == pytest.approx(np.mean(ious))
    assert metrics["miou_large"] is None
    assert metrics["miou_small"] == pytest.approx(np.mean([calls[1][0].iou, calls[1][2].iou]))
    assert (metrics["num_instances"], metrics["num_images"]) == (4, 2)


def test_finished_photos_are_not_evaluated_again(model, coco_set):
    finished = [InstanceScore("tall", 13, 2400, 0.25, 0.5, {}, boundary_iou=0.125)]
    calls: list[list[InstanceScore]] = []
    metrics = evaluate_model(model, coco_set, BOX, finished=finished, on_photo=calls.append)
    assert [scores[0].image for scores in calls] == ["wide"]
    assert metrics == summarize([*finished, *calls[0]])


def test_max_images_counts_photos_in_the_order_of_their_keys(coco_set):
    assert [photo.key for photo in photos_with_instances(coco_set, 1)] == ["tall"]


def test_a_set_without_instances_is_refused(tmp_path):
    with pytest.raises(DataError, match="no instance with pixels"):
        photos_with_instances(write_set(tmp_path, {"photo": (20, 20)}, []))


def test_intervals_hold_the_means(model, coco_set):
    scores = [score for photo in photos_with_instances(coco_set) for score in evaluate_photo(model, photo, BOX)]
    metrics, intervals = summarize(scores), score_intervals(scores)
    assert {"miou", "boundary_iou", "iou_error", "iou_correlation", "miou_small"} <= set(intervals)
    assert "miou_large" not in intervals
    for name in ("miou", "boundary_iou", "iou_error"):
        assert intervals[name].low <= metrics[name] <= intervals[name].high
    assert score_intervals(scores[:1]) == {}


def test_polygons_and_codes_of_one_mask_score_the_same(model, tmp_path):
    """Mix both forms in one file, with boxes that reach beyond the photo and a crowd region, which is left out."""
    hw = (60, 80)
    coco_set = write_set(tmp_path, {"photo": hw}, [("photo", rectangle(hw, (10, 10, 40, 60)))])
    content = json.loads((tmp_path / "set.json").read_text())
    (code,) = content["annotations"]
    code["bbox"] = [10, 10, 30, 500]  # beyond the lower border
    polygon = {**code, "id": 11, "bbox": [10, 10, 30, 50], "segmentation": [[10, 10, 40, 10, 40, 60, 10, 60]]}
    crowd = {**code, "id": 12, "iscrowd": 1, "segmentation": {"size": list(hw), "counts": [0, 4800]}}
    content["annotations"] = [code, polygon, {**code, "id": 13, "bbox": [90, 10, 5, 5]}, crowd]
    (tmp_path / "set.json").write_text(json.dumps(content))
    coco_set = CocoSet(tmp_path, tmp_path / "set.json")
    scores = evaluate_photo(model, photos_with_instances(coco_set)[0], BOX)
    assert [score.annotation_id for score in scores] == [10, 11, 13]
    assert {tuple(score.prompt["box_xyxy"]) for score in scores} == {(10, 10, 40, 60)}
    assert scores[0].iou == pytest.approx(scores[1].iou, abs=1e-4)
    assert coco_set.num_crowd == 1


def evaluate_baseline(name: str, prompt: EvaluatePromptConfig) -> dict:
    coco_set = CocoSet(COCO_MINI / "val", COCO_MINI / "instances_val.json")
    evaluation = PromptEvaluation(coco_set, PromptProtocol(prompt))
    with WorkerPool(0) as workers:
        found = list(evaluate_photos(evaluation, baseline(name), evaluation.photos, workers))
    return evaluation.summarize(found).metrics


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="DISTILL_DATA names no directory with coco_mini")
def test_baselines_on_coco_mini():
    """Check both bounds: filled boxes, which know nothing of the photo, and an oracle, which scores 1."""
    filled = evaluate_baseline("fill-box", EvaluatePromptConfig("box"))
    assert filled["miou"] == pytest.approx(0.566, abs=0.0005)
    assert (filled["num_instances"], filled["num_images"], filled["num_crowd"]) == (706, 99, 5)
    oracle = evaluate_baseline("oracle", EvaluatePromptConfig("box"))
    scores = {name: value for name, value in oracle.items() if "iou" in name and not name.startswith("iou_")}
    assert len(scores) == 8 and set(scores.values()) == {1.0}
    assert oracle["iou_error"] == 0 and oracle["iou_correlation"] is None  # nothing varies
