"""The predictor answers as segment_anything's SamPredictor, in the photo's own pixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from distill.errors import DistillError
from distill.models.predictor import Predictor
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec

PHOTO = np.random.RandomState(0).randint(0, 256, (61, 97, 3), np.uint8)
IMAGE_SIZE, EMBEDDING_DIM = 128, 32


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    """Build a small model of SAM's architecture: S = 128, E = 8."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=IMAGE_SIZE,
        embed_dim=48,
        depth=2,
        num_heads=3,
        out_chans=EMBEDDING_DIM,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    spec = ModelSpec("small_vit", IMAGE_SIZE, EMBEDDING_DIM, embedding_size=8, decoder_mlp_dim=64)
    return PromptableModel(spec, encoder).eval()


@pytest.fixture(scope="module")
def reference(model: PromptableModel) -> SamPredictor:
    means = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}  # build_sam.py
    sam = Sam(model.image_encoder, model.prompt_encoder, model.mask_decoder, **means)
    return SamPredictor(sam.eval())


LOGITS_ATOL = 1e-6  # our decoder adds in another order; the roundoff of logits near 0.01 was 5e-8
LOW_RES = np.random.RandomState(1).randn(1, 32, 32).astype(np.float32)
BOX = np.array([10, 5, 60, 41])
POINTS = {"point_coords": np.array([[30, 20], [80.5, 55.25]]), "point_labels": np.array([1, 0])}
PROMPTS: dict[str, dict[str, Any]] = {
    "box": {"box": BOX},
    "points": POINTS,
    "mask": {"mask_input": LOW_RES},
    "box and points": {"box": BOX, **POINTS},
    "points and mask": {**POINTS, "mask_input": LOW_RES},
    "all": {"box": BOX, **POINTS, "mask_input": LOW_RES},
}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("original_hw", [(61, 97), (97, 61), (200, 200), (128, 128), (300, 37)])
def test_equal_to_sam_predictor(model, reference, original_hw: tuple[int, int], kind: str, multimask: bool):
    photo = np.random.RandomState(2).randint(0, 256, (*original_hw, 3), np.uint8)
    predictor = Predictor(model)
    predictor.set_image(photo)
    reference.set_image(photo)
    torch.testing.assert_close(predictor.embedding, reference.get_image_embedding())
    actual = predictor.predict(**PROMPTS[kind], multimask_output=multimask)
    full_logits, *expected = reference.predict(**PROMPTS[kind], multimask_output=multimask, return_logits=True)
    assert [array.dtype for array in actual] == [np.bool_, np.float32, np.float32]
    for mine, theirs in zip(actual[1:], expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=LOGITS_ATOL)
    # Enlarging logits mixes them, so the error does not grow: a pixel may only differ where it is on the mask's edge.
    on_edge = np.abs(full_logits) <= LOGITS_ATOL
    assert on_edge.mean() < 0.001
    np.testing.assert_array_equal(actual[0] | on_edge, (full_logits > 0) | on_edge)


def test_lists_are_prompts_too(model):
    predictor = Predictor(model)
    predictor.set_image(PHOTO)
    for as_array, as_list in (
        ({"box": BOX}, {"box": BOX.tolist()}),
        (POINTS, {name: value.tolist() for name, value in POINTS.items()}),
    ):
        for mine, theirs in zip(predictor.predict(**as_list), predictor.predict(**as_array), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("image_size", "embedding_size"), [(64, 16), (96, 4), (128, 5)])
def test_any_grid(image_size: int, embedding_size: int):
    model = build_from_spec(
        ModelSpec("efficientvit_sam_t", image_size, embedding_dim=32, embedding_size=embedding_size)
    )
    predictor = Predictor(model)
    predictor.set_image(PHOTO)
    masks, iou_predictions, logits = predictor.predict(**POINTS)
    assert (masks.shape, iou_predictions.shape) == ((3, 61, 97), (3,))
    assert logits.shape == (3, 4 * embedding_size, 4 * embedding_size)
    again, _, _ = predictor.predict(**POINTS, mask_input=logits[:1], multimask_output=False)
    assert again.shape == (1, 61, 97)


def test_no_photo(model):
    predictor = Predictor(model)
    with pytest.raises(DistillError, match="no photo is set: call set_image"):
        predictor.predict(box=BOX)
    predictor.set_image(PHOTO)
    predictor.predict(box=BOX)
    predictor.reset_image()
    with pytest.raises(DistillError, match="no photo is set"):
        predictor.predict(box=BOX)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("photo.jpg", "not a str"),
        (PHOTO.astype(np.float32) / 255, "its type is float32"),
        (PHOTO.astype(np.int64), "its type is int64"),
        (PHOTO[..., 0], r"its shape is \(61, 97\)"),
        (np.zeros((5, 5, 4), np.uint8), r"its shape is \(5, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), r"its shape is \(0, 5, 3\)"),
        (PHOTO.transpose(2, 0, 1), r"its shape is \(3, 61, 97\)"),
    ],
)
def test_bad_photo(model, photo, message: str):
    predictor = Predictor(model)
    predictor.set_image(PHOTO)
    with pytest.raises(DistillError, match=message):
        predictor.set_image(photo)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "nothing to predict"),
        ({"box": [1, 2, 3]}, r"box must have the shape \(4,\) or \(N, 4\), not \(3,\)"),
        ({"box": np.zeros((0, 4))}, r"box must have the shape \(4,\) or \(N, 4\), not \(0, 4\)"),
        ({"box": np.ones((3, 4)), **POINTS}, "1 of point_coords and 3 of box do not belong together"),
        ({"box": [1, 2, 3, np.nan]}, "box must be finite"),
        ({"box": "1 2 3 4"}, "box must hold numbers"),
        ({"point_coords": [[1, 2]]}, "without point_labels"),
        ({"point_labels": [1]}, "without point_coords"),
        ({"point_coords": [1, 2], "point_labels": [1]}, r"the shape \(N, 2\) or \(N, N, 2\), not \(2,\)"),
        ({"point_coords": np.zeros((0, 2)), "point_labels": []}, r"point_coords must have the shape \(N, 2\)"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, r"point_labels must have the shape \(1,\), not \(2,\)"),
        ({"point_coords": [[1, 2]], "point_labels": [7]}, r"point_labels are 1 on the object and 0 off it, not \[7"),
        ({"mask_input": np.zeros((1, 256, 256))}, r"the shape \(1, 32, 32\) or \(N, 1, 32, 32\), not \(1, 256"),
    ],
)
def test_bad_prompt(model, prompt: dict[str, Any], message: str):
    predictor = Predictor(model)
    predictor.set_image(PHOTO)
    with pytest.raises(DistillError, match=message):
        predictor.predict(**prompt)
