"""A prediction over photos: what is written, what is done again, tiles, and everything on a photo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.coco import CocoSet
from distill.data.rle import decode_mask
from distill.errors import DataError
from distill.models.predictor import Predictor
from distill.models.sam import PromptableModel
from distill.prediction.answering import Answering, Everything
from distill.prediction.asking import Asked, ObjectPrompt
from distill.prediction.photos import find_photos
from distill.prediction.record import RECORD_FILE
from distill.prediction.run import Options, Predicted, predict_photos
from tests.fixtures.small_sam import as_ours, build_sam

BOX = (10.0, 5.0, 60.0, 40.0)
PROMPTS = (ObjectPrompt(BOX), ObjectPrompt(None, ((20.0, 20.0), (50.0, 30.0)), (1, 0)), ObjectPrompt((3, 3, 30, 30)))
ALL = Options(formats=("png", "coco", "polygons", "yolo"))


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    return as_ours(build_sam())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, (height, width) in enumerate([(48, 80), (70, 66), (50, 90)]):
        pixels = np.random.RandomState(i).randint(0, 256, (height // 6, width // 6, 3), np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((width, height)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def predict(model, photos: Path, out: Path, options: Options = ALL, prompts=PROMPTS, **more) -> Predicted:
    asked = Asked(everywhere=tuple(prompts))
    return predict_photos(lambda: model, find_photos([photos]), asked, out, options, **more)


def test_masks_are_those_of_the_predictor_in_every_format(model, photos, tmp_path):
    out = tmp_path / "out"
    result = predict(model, photos, out)
    assert [photo.name for photo in result.photos] == ["0", "1", "2"] and not result.failed
    content = json.loads((out / "predictions.json").read_text())
    coco_set = CocoSet(photos, out / "predictions.json")
    predictor = Predictor(model)
    for photo in coco_set:
        predictor.set_image(photo.load())
        found = {instance.id: instance for instance in photo.instances}
        rows = [row for row in content["annotations"] if row["image_id"] == coco_set.image_ids[photo.key]]
        for row, prompt in zip(rows, PROMPTS, strict=True):
            clicks = {"point_coords": prompt.points_xy or None, "point_labels": prompt.labels or None}
            masks, iou, _ = predictor.predict(box=prompt.box_xyxy, **clicks, multimask_output=False)
            mask = decode_mask(found[row["id"]].rle).astype(bool)
            assert (mask != masks[0]).mean() < 1e-3
            assert row["predicted_iou"] == pytest.approx(iou[0], abs=1e-5)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    pngs = [f"{i}_object_{k}_mask_0.png" for i in range(3) for k in range(3)] + [f"{i}_overlay.png" for i in range(3)]
    labels = [f"labels/{i}.txt" for i in range(3)] + ["labels/classes.txt"]
    assert files == sorted([*pngs, *labels, "predictions.json", "polygons.json", "predictions.jsonl"])


def test_polygons_and_labels_are_the_same_masks(model, photos, tmp_path):
    out = tmp_path / "out"
    predict(model, photos, out)
    codes, polygons = (CocoSet(photos, out / name) for name in ("predictions.json", "polygons.json"))
    for one, other in zip(codes, polygons, strict=True):
        height, width = one.hw
        lines = (out / "labels" / f"{one.key}.txt").read_text().splitlines()
        assert len(lines) == len(one.instances) == len(other.instances)
        for a, b, text in zip(one.instances, other.instances, lines, strict=True):
            masks = [decode_mask(instance.rle).astype(bool) for instance in (a, b)]
            assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.9
            category, *shares = text.split()
            points = np.array(shares, float).reshape(-1, 2) * [width, height]
            assert category == "0" and len(points) >= 3
            xs, ys = masks[0].any(0).nonzero()[0], masks[0].any(1).nonzero()[0]
            assert np.abs(points.min(0) - [xs[0], ys[0]]).max() <= 1.5
            assert np.abs(points.max(0) - [xs[-1] + 1, ys[-1] + 1]).max() <= 1.5


def test_what_is_finished_is_not_done_again(model, photos, tmp_path):
    out = tmp_path / "out"
    first = predict(model, photos, out, model_key="one")
    assert first.num_before == 0
    stamp = {path: path.stat().st_mtime_ns for path in out.glob("*_mask_0.png")}

    def unwanted() -> PromptableModel:
        raise AssertionError("the model is not needed")

    named = find_photos([photos])
    again = predict_photos(unwanted, named, Asked(everywhere=PROMPTS), out, ALL, model_key="one")
    assert again.num_before == 3 and again.photos == first.photos
    assert {path: path.stat().st_mtime_ns for path in out.glob("*_mask_0.png")} == stamp

    (out / "1_object_0_mask_0.png").unlink()  # its files are not all there
    record = (out / RECORD_FILE).read_bytes().splitlines(keepends=True)
    (out / RECORD_FILE).write_bytes(b"".join(record[:2]) + record[2][:40])  # stopped while it wrote the last line
    assert predict(model, photos, out, model_key="one").num_before == 1
    assert predict(model, photos, out, model_key="one").num_before == 3
    assert predict(model, photos, out, model_key="two").num_before == 0  # another model
    assert predict(model, photos, out, model_key="two", prompts=PROMPTS[:2]).num_before == 0
    Image.new("RGB", (80, 48)).save(photos / "0.png")
    assert predict(model, photos, out, model_key="two", prompts=PROMPTS[:2]).num_before == 2


def test_a_bad_photo_costs_itself(model, photos, tmp_path):
    (photos / "1.png").write_bytes(b"no photo")
    result = predict(model, photos, tmp_path / "out")
    assert [photo.name for photo in result.photos] == ["0", "2"]
    (failed,) = result.failed
    assert "1.png: cannot be decoded" in failed
    outside = predict(model, photos, tmp_path / "out", prompts=[ObjectPrompt((82, 2, 88, 9))])
    assert [photo.name for photo in outside.photos] == [
        "2"
    ] and "0.png: --box 82 2 88 9 lies outside" in outside.failed[0]
    with pytest.raises(DataError, match="cannot be decoded"):
        predict(model, photos / "1.png", tmp_path / "out")


def test_boxes_of_a_detector_that_miss_the_photo_are_counted(model, photos, tmp_path):
    """A detector may say anything: its box beside the photo, or without extent, does not cost the photo."""
    boxes = [ObjectPrompt(box, score=0.5) for box in (BOX, (100, 2, 130, 9), (5, 5, 5, 20))]
    result = predict(model, photos, tmp_path / "out", prompts=boxes)
    assert not result.failed and result.num_outside == 6
    assert [[one.box for one in photo.objects] for photo in result.photos] == [[list(BOX)]] * 3


def test_a_damaged_record(model, photos, tmp_path):
    predict(model, photos, tmp_path / "out")
    record = (tmp_path / "out" / RECORD_FILE).read_text()
    for damaged in (
        '{"name": 1}\n',
        record.replace('"height":48', '"height":49'),
        record.replace('"files":["', '"files":["../'),
        record.replace('"predicted_iou":[', '"predicted_iou":[0.5,'),
    ):
        (tmp_path / "out" / RECORD_FILE).write_text(damaged)
        with pytest.raises(DataError, match=r"predictions.jsonl: line 1: "):
            predict(model, photos, tmp_path / "out")


def test_an_earlier_mask_is_a_prompt(model, photos, tmp_path):
    photo = np.asarray(Image.open(photos / "0.png"))
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[5:40, 10:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    answering = Answering(model)
    plain, helped, alone = (
        answering.answer(photo, [prompt])[0].masks[0]["counts"]
        for prompt in (
            ObjectPrompt(BOX),
            ObjectPrompt(BOX, mask=tmp_path / "mask.png"),
            ObjectPrompt(mask=tmp_path / "mask.png"),
        )
    )
    assert len({plain, helped, alone}) == 3
    Image.fromarray(mask[:-1]).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="the mask has 47 x 80 pixels .* and its photo 48 x 80"):
        answering.answer(photo, [ObjectPrompt(mask=tmp_path / "mask.png")])


class Threshold(PromptableModel):
    """A stand-in for a trained model: it answers bright pixels, which an untrained one does not see."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        size = (self.low_res_size, self.low_res_size)
        return torch.nn.functional.interpolate(pixels.mean(1, keepdim=True), size, mode="area")

    def decode(self, embeddings, prompts, *, multimask):
        logits = 10 * embeddings[prompts.image_index]
        return logits.expand(-1, 3 if multimask else 1, -1, -1), torch.ones(len(prompts), 3 if multimask else 1)


def test_tiles_see_what_a_small_copy_of_a_large_photo_does_not(model):
    """A small bright square keeps its edges in a tile; one that its tile would cut off is seen in a larger one."""
    photo = np.zeros((1000, 1600, 3), np.uint8)
    small, large = np.zeros((2, 1000, 1600), bool)
    small[413:440, 711:735] = True
    large[100:380, 900:1500] = True
    photo[small | large] = 255
    threshold = Threshold(model.spec, model.image_encoder)
    for truth, box in ((small, (709.0, 411.0, 737.0, 442.0)), (large, (890.0, 90.0, 1510.0, 390.0))):
        (found,) = Answering(threshold, tile=160).answer(photo, [ObjectPrompt(box)])
        x0, y0, x1, y1 = (int(value) for value in box)
        mask = decode_mask(found.masks[0])[y0:y1, x0:x1].astype(bool)  # the stand-in answers all bright pixels
        iou = (mask & truth[y0:y1, x0:x1]).sum() / (mask | truth[y0:y1, x0:x1]).sum()
        (found,) = Answering(threshold).answer(photo, [ObjectPrompt(box)])
        coarse = decode_mask(found.masks[0])[y0:y1, x0:x1].astype(bool)
        assert iou > 0.9 and iou > (coarse & truth[y0:y1, x0:x1]).sum() / (coarse | truth[y0:y1, x0:x1]).sum()
    middle = ObjectPrompt(None, ((1200.0, 240.0),), (1,))  # a click inside the large one: its tile is bright all over
    (found,) = Answering(threshold, tile=160).answer(photo, [middle])
    assert decode_mask(found.masks[0])[100:380, 900:1500].mean() > 0.97


class Discs(Threshold):
    """A stand-in that answers a click with a disc around it, of a predicted IoU that grows to the right."""

    def decode(self, embeddings, prompts, *, multimask):
        cells = (torch.arange(self.low_res_size) + 0.5) * self.prompt_size / self.low_res_size
        x, y = prompts.points_xy.float().mean(1).unbind(1)
        squared = (cells[None, None, :] - x[:, None, None]) ** 2 + (cells[None, :, None] - y[:, None, None]) ** 2
        logits = (self.prompt_size / 10) ** 2 - squared
        return logits[:, None].expand(-1, 3, -1, -1), (x / self.prompt_size)[:, None].expand(-1, 3)


@pytest.mark.parametrize("tile", [0, 200])
def test_everything(model, photos, tmp_path, tile):
    discs = Discs(model.spec, model.image_encoder)
    Image.new("RGB", (400, 300)).save(photos / "2.png")
    options = Options(tile=tile, everything=Everything(3, 0.0, 0.0), formats=("coco",))
    result = predict(discs, photos / "2.png", tmp_path / "out", options, prompts=())
    (photo,) = result.photos
    assert len(photo.objects) == 9 if not tile else len(photo.objects) > 9  # more, smaller ones in the crops
    ranks = [one.predicted_iou[0] + one.stability for one in photo.objects]
    assert ranks == sorted(ranks, reverse=True)
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == len(photo.objects)
    none = predict(discs, photos / "2.png", tmp_path / "none", Options(everything=Everything(3, 1.0, 1.0)), prompts=())
    assert none.photos[0].objects == [] and (tmp_path / "none" / "2_overlay.png").is_file()
