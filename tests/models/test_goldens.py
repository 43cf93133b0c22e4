"""The published models, by tensor names and by numbers: tests/reference holds what the original code computes.

Weights and inputs are made up (tests/fixtures/references.py); tools/make_references.py shows how the files were made.
"""

from __future__ import annotations

import gc
import json
from typing import Any

import numpy as np
import pytest
import torch

from distill.models.predictor import Predictor
from distill.models.sam import PromptableModel, build_model
from tests.fixtures.references import (
    AREA_SHARE,
    IOU_ATOL,
    MEAN_ATOL,
    PEAK,
    REFERENCE,
    STD_ATOL,
    embedding_limit,
    fill_with_made_up_weights,
    logits_limit,
    made_up_photo,
    made_up_pixels,
    sample,
)

# EfficientSAM's own decoder is not supported: these are encoders alone.
ENCODERS = ("efficient_sam_vits", "efficient_sam_vitt")
MODELS = sorted({path.stem for path in REFERENCE.glob("*.json")} - set(ENCODERS))


def assert_close(found: np.ndarray, expected: list[float], rms_limit: float) -> None:
    """Compare root mean square and largest difference with their limits."""
    differences = found.astype(np.float64) - expected
    assert np.sqrt(np.mean(differences**2)) <= rms_limit
    assert np.abs(differences).max() <= PEAK * rms_limit


def check_embedding(model: PromptableModel, golden: dict[str, Any], rms_limit: float) -> None:
    side = golden["input_size"]
    assert model.image_size == side
    with torch.inference_mode():
        embedding = model.encode(made_up_pixels(golden["seed"], side)).numpy()
    assert list(embedding.shape) == golden["output_shape"]
    assert embedding.mean() == pytest.approx(golden["mean"], abs=MEAN_ATOL)
    assert embedding.std() == pytest.approx(golden["std"], abs=STD_ATOL)
    assert_close(sample(embedding, 2048), golden["sample_values"], rms_limit)


def check_predictor(model: PromptableModel, seed: str, golden: dict[str, Any], rms_limit: float) -> None:
    height, width = golden["image"]["height"], golden["image"]["width"]
    predictor = Predictor(model)
    predictor.set_image(made_up_photo(seed, height, width))
    box = {"box": golden["box_xyxy"]}
    points = {"point_coords": golden["point_coords"], "point_labels": golden["point_labels"]}
    assert set(golden["results"]) == {"box_multimask", "box_single", "points_multimask"}
    for name, expected in golden["results"].items():
        prompt = box if name.startswith("box") else points
        masks, iou_predictions, logits = predictor.predict(**prompt, multimask_output=name.endswith("multimask"))
        assert list(masks.shape) == expected["masks_shape"]
        assert list(logits.shape) == expected["low_res_shape"]
        np.testing.assert_allclose(iou_predictions, expected["iou_predictions"], rtol=0, atol=IOU_ATOL)
        assert_close(sample(logits, 512), expected["low_res_sample"], rms_limit)
        np.testing.assert_allclose(masks.sum((1, 2)), expected["mask_areas"], rtol=0, atol=AREA_SHARE * height * width)


@pytest.mark.parametrize("name", MODELS)
def test_published_model(name: str):
    golden = json.loads((REFERENCE / f"{name}.json").read_text())
    model = build_model(name)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == golden["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == golden["n_params_total"]
    assert sum(p.numel() for p in model.image_encoder.parameters()) == golden["n_params_image_encoder"]
    fill_with_made_up_weights(model, golden["seed"])
    check_embedding(model, golden, embedding_limit(name))
    if "predictor" in golden:
        check_predictor(model, golden["seed"], golden["predictor"], logits_limit(name))
    del model
    gc.collect()  # XL1 takes 0.8 GB


@pytest.mark.parametrize("name", ENCODERS)
def test_published_encoder(name: str):
    golden = json.loads((REFERENCE / f"{name}.json").read_text())
    model = build_model(name)
    published = {key: shape for key, shape in golden["state_dict"].items() if key.startswith("image_encoder.")}
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert {key: shape for key, shape in ours.items() if key.startswith("image_encoder.")} == published
    assert sum(p.numel() for p in model.image_encoder.parameters()) == golden["n_params_image_encoder"]
    fill_with_made_up_weights(model, golden["seed"])
    check_embedding(model, golden, embedding_limit(name))


def test_settings_of_decoders():
    """Compare the settings that no tensor shows with mobile_sam's, whose logits are compared closely."""

    def settings(name: str) -> list[tuple[str, Any, Any]]:
        decoder = build_model(name).mask_decoder
        return [(type(m).__name__, getattr(m, "eps", None), getattr(m, "approximate", None)) for m in decoder.modules()]

    expected = settings("mobile_sam")
    assert {("LayerNorm", 1e-5, None), ("LayerNorm2d", 1e-6, None), ("GELU", None, "none")} < set(expected)
    assert settings("repvit_sam") == settings("edge_sam") == expected
