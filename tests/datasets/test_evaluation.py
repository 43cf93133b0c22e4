"""The evaluator, with a tiny model and photos whose answers can be worked out another way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.config import EvaluatePromptConfig
from distill.datasets.coco import CocoSet
from distill.datasets.evaluation import (
    Clicker,
    InstanceScore,
    Protocol,
    evaluate_model,
    evaluate_photo,
    photos_to_ask,
    summarize,
)
from distill.datasets.rle import decode_mask, encode_mask
from distill.errors import DataError
from distill.geometry import boxes_to_prompt_frame, letterbox, masks_to_original
from distill.metrics import MaskIoU, mask_iou
from distill.prompts import NEGATIVE, POSITIVE, Prompts
from distill.sam import ModelSpec, PromptableModel, build_from_spec

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
BOX = Protocol(EvaluatePromptConfig("box"))
CLICKS = Protocol(EvaluatePromptConfig("point", num_clicks=3), multimask="best")
COCO_MINI = Path(os.environ.get("DISTILL_DATA", "")) / "coco_mini"


def rectangle(hw: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def write_set(directory: Path, photos: dict[str, tuple[int, int]], masks: list[tuple[str, np.ndarray]]) -> CocoSet:
    """Photos of noise, by name and (height, width), and one instance per (name, mask)."""
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
    small = Protocol(protocol.prompt, protocol.multimask, prompt_batch_size=2)
    for photo in photos_to_ask(coco_set):
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


def test_one_click_asks_once(model, coco_set):
    one = Protocol(EvaluatePromptConfig("point"), multimask="best")
    for photo in photos_to_ask(coco_set):
        for score in evaluate_photo(model, photo, one):
            assert score.prompt["labels"] == [POSITIVE]


def test_a_content_person_clicks_no_more():
    truth = rectangle((20, 20), (2, 2, 9, 9))
    clicker = Clicker(truth)
    assert clicker.click()
    clicker.predicted = truth | rectangle((20, 20), (12, 12, 17, 17))
    assert clicker.click()
    assert clicker.points_xy == [[5.5, 5.5], [14.5, 14.5]]
    assert clicker.labels == [POSITIVE, NEGATIVE]
    clicker.predicted = truth
    assert not clicker.click()


def test_the_whole_set(model, coco_set):
    calls: list[list[InstanceScore]] = []
    metrics = evaluate_model(model, coco_set, BOX, on_photo=calls.append)
    assert [[score.image for score in scores] for scores in calls] == [["tall"], ["wide"] * 3]
    ious = [score.iou for scores in calls for score in scores]
    assert metrics["miou"] == pytest.approx(np.mean(ious))
    assert metrics["miou_large"] is None
    assert metrics["miou_small"] == pytest.approx(np.mean([calls[1][0].iou, calls[1][2].iou]))
    assert (metrics["num_instances"], metrics["num_images"]) == (4, 2)


def test_finished_photos_are_not_asked_again(model, coco_set):
    finished = [InstanceScore("tall", 13, 2400, 0.25, 0.5, {})]
    calls: list[list[InstanceScore]] = []
    metrics = evaluate_model(model, coco_set, BOX, finished=finished, on_photo=calls.append)
    assert [scores[0].image for scores in calls] == ["wide"]
    assert metrics == summarize([*finished, *calls[0]])


def test_max_images_counts_photos_in_the_order_of_their_keys(coco_set):
    assert [photo.key for photo in photos_to_ask(coco_set, 1)] == ["tall"]


def test_a_set_without_instances_is_refused(tmp_path):
    with pytest.raises(DataError, match="no instance with pixels"):
        photos_to_ask(write_set(tmp_path, {"photo": (20, 20)}, []))


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="DISTILL_DATA names no directory with coco_mini")
def test_filling_boxes_on_coco_mini():
    """The baseline that knows nothing of the photo; also that an oracle scores 1."""
    baseline, oracle = MaskIoU(), MaskIoU()
    for photo in CocoSet(COCO_MINI / "val", COCO_MINI / "instances_val.json"):
        for instance in photo.instances:
            truth = torch.from_numpy(decode_mask(instance.rle)).bool()
            x1, y1, x2, y2 = (round(side) for side in instance.bbox_xyxy)
            filled = torch.from_numpy(rectangle(photo.hw, (x1, y1, x2, y2)))
            area = torch.tensor([instance.area])
            baseline.update(mask_iou(filled, truth)[None], area)
            oracle.update(mask_iou(truth, truth)[None], area)
    assert baseline.compute()["miou"].item() == pytest.approx(0.566, abs=0.0005)
    assert oracle.compute()["miou"].item() == 1
