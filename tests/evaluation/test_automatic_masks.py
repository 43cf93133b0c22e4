"""segment-anything's mask generator on our models, and agreement of two of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from distill.config.schema import AgreementPromptConfig, GridConfig
from distill.data.coco import CocoSet
from distill.data.rle import encode_mask
from distill.errors import DistillError
from distill.evaluation.automatic_masks import AutomaticMaskEvaluation, mask_generator
from distill.evaluation.evaluator import evaluate_photos
from distill.evaluation.predictors import ModelPredictor, baseline
from distill.evaluation.teacher_agreement import AgreementEvaluation
from distill.evaluation.worker_pool import WorkerPool
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
ALL = GridConfig(points_per_side=4, predicted_iou_threshold=0.0, stability_threshold=0.0, box_nms_threshold=0.9)


def build(seed: int, spec: ModelSpec = SPEC) -> PromptableModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_from_spec(spec)
        model.mask_decoder.iou_prediction_head.layers[-1].bias.data += 0.9  # else all are filtered as hopeless
    return model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos of 60 x 80 with a rectangle each."""
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 1
    for i in range(2):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(2)]
    row = {"bbox": [20, 10, 40, 30], "category_id": 1, "segmentation": encode_mask(mask), "area": int(mask.sum())}
    annotations = [{**row, "id": i, "image_id": i, "iscrowd": 0} for i in range(2)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


class SamEncoder(torch.nn.Module):
    """Our encoder under the one attribute that segment-anything's Sam reads of its own."""

    def __init__(self, model: PromptableModel) -> None:
        super().__init__()
        self.model, self.img_size = model, model.image_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode(pixels)


def test_all_masks_of_a_photo_are_segment_anythings(photos):
    """Compare with the same weights in segment-anything's own Sam, whose prompt frame is as large as its input."""
    model = build(0, ModelSpec("efficientvit_sam_t", 128, 32, 8, 64, 1e-6))
    sam = Sam(SamEncoder(model), model.prompt_encoder, model.mask_decoder).eval()
    options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9, "output_mode": "coco_rle"}
    photo = np.asarray(Image.open(photos / "0.png"))
    with torch.no_grad():
        expected = SamAutomaticMaskGenerator(sam, points_per_side=4, **options).generate(photo)
        found = mask_generator(model, ALL).generate(photo)
    assert len(found) == len(expected) > 1
    assert [row["point_coords"] for row in found] == [row["point_coords"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-4)
        assert one["area"] == pytest.approx(other["area"], abs=5)


def run(evaluation, predictor) -> dict:
    with WorkerPool(0) as workers:
        found = {one.image: one for one in evaluate_photos(evaluation, predictor, evaluation.photos, workers)}
    summary = evaluation.summarize([found[photo.key] for photo in evaluation.photos])
    return {**summary.metrics, "intervals": summary.intervals, "found": found}


def test_recall_of_everything(photos):
    coco_set = CocoSet(photos, photos / "set.json")
    oracle = run(AutomaticMaskEvaluation(coco_set, ALL), baseline("oracle"))
    assert oracle["ar_10"] == oracle["ar_1000"] == oracle["ar_medium"] == 1 and oracle["ar_small"] is None
    assert oracle["masks_per_image"] == 1
    few = run(
        AutomaticMaskEvaluation(coco_set, GridConfig(4, 64, 0.0, 0.0, 0.9, max_masks=3)), ModelPredictor(build(0))
    )
    assert 0 <= few["ar_1000"] < 1 and few["masks_per_image"] <= 3
    scores = [mask.score for mask in few["found"]["0"].scores]
    assert scores == sorted(scores, reverse=True)
    for name in ("fill-box", "fill-ellipse"):
        with pytest.raises(DistillError, match=f"'{name}' finds nothing by itself"):
            run(AutomaticMaskEvaluation(coco_set, ALL), baseline(name))


def test_a_model_agrees_with_itself(photos):
    for kind in ("box", "point", "pair"):
        prompt = AgreementPromptConfig(kind, points_per_side=3, pair_pixels=20)
        policy = "best" if kind == "point" else "single"
        evaluation = AgreementEvaluation(photos, ModelPredictor(build(0)), prompt, multimask=policy)
        same, other = (run(evaluation, ModelPredictor(build(seed))) for seed in (0, 1))
        assert same["cosine"] == pytest.approx(1) and other["cosine"] < 0.99
        assert same["num_images"] == 2 and same["num_instances"] == other["num_instances"] > 0
        assert other["miou"] < 0.9
        if kind != "box":  # the same prompts to the same model
            assert same["miou"] == same["boundary_iou"] == 1
            assert same["intervals"]["cosine"] == pytest.approx((1, 1))


def test_embeddings_of_other_sizes(photos):
    """Resize another grid; do not compare other channels; compare the masks in both cases."""
    teacher, prompt = ModelPredictor(build(0)), AgreementPromptConfig(points_per_side=3)
    grid = build(1, ModelSpec("efficientvit_sam_t", 64, 32, 4, 64, 1e-6))
    channels = build(1, ModelSpec("efficientvit_sam_t", 64, 16, 8, 64, 1e-6))
    assert -1 <= run(AgreementEvaluation(photos, teacher, prompt), ModelPredictor(grid))["cosine"] <= 1
    found = run(AgreementEvaluation(photos, teacher, prompt), ModelPredictor(channels))
    assert found["cosine"] is None and 0 <= found["miou"] <= 1
    with pytest.raises(DistillError, match="a baseline has none"):
        run(AgreementEvaluation(photos, teacher, prompt), baseline("oracle"))
