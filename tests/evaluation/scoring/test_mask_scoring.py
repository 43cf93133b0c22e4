"""Upsampling masks, comparing them and clicking, each against a plainer way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_erosion

from distill.data.rle import encode_mask
from distill.evaluation.scoring.boundary_iou import boundary_iou, outline, outline_width
from distill.evaluation.scoring.mask_scoring import (
    Frame,
    ScoringRequest,
    crop_positive,
    first_clicks,
    mask_to_original,
    score_masks,
)
from distill.geometry import masks_to_original
from distill.prompts.types import NEGATIVE

FRAME = Frame(prompt_size=128, low_res_size=32)


def logits(seed: int, num: int = 4) -> torch.Tensor:
    """Return blobs of all sizes, (num, 1, 32, 32)."""
    noise = torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise - torch.linspace(-0.5, 1.6, num)[:, None, None, None], (32, 32), mode="bicubic")


@pytest.mark.parametrize("hw", [(60, 80), (300, 200), (9, 50), (128, 128), (20, 1000)])
def test_masks_are_upsampled_as_the_predictor_does(hw):
    low_res = logits(hw[0])
    expected = (masks_to_original(low_res, hw, FRAME.prompt_size) > 0)[:, 0].numpy()
    found = np.stack([mask_to_original(crop_positive(mask.numpy(), FRAME), hw) for mask in low_res[:, 0]])
    assert expected.any((1, 2)).any() and not expected.all()
    assert (expected != found).mean() < 1e-5  # a pixel whose logit is zero but for rounding


def test_a_mask_without_a_pixel():
    part = crop_positive(np.full((32, 32), -1.0, np.float32), FRAME)
    assert part.logits.size == 0 and not mask_to_original(part, (20, 30)).any()
    score = score_masks([ScoringRequest([part], (20, 30), encode_mask(np.ones((20, 30), bool)))])[0]
    assert (score.iou, score.boundary_iou) == (0, 0)


def blob(seed: int, hw: tuple[int, int] = (70, 90)) -> np.ndarray:
    noise = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(noise, hw, mode="bicubic")[0, 0] > 0).numpy()


@pytest.mark.parametrize("distance", [1, 2, 7, 40])
def test_an_outline_is_what_erosion_takes_away(distance):
    mask = blob(3)
    eroded = binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=distance)[1:-1, 1:-1]
    assert np.array_equal(outline(mask, distance), mask & ~eroded)


def test_boundary_iou():
    first, second = blob(1), blob(2)
    distance = round(0.02 * math.hypot(70, 90))
    assert outline_width(70, 90) == distance and outline_width(10, 10) == 1
    one, other = outline(first, distance), outline(second, distance)
    assert boundary_iou(first, second) == pytest.approx((one & other).sum() / (one | other).sum())
    assert boundary_iou(first, first) == 1


def test_the_candidate_of_the_best_true_iou_is_chosen():
    truth = blob(4)
    near = truth.copy()
    near[:5] = False
    request = ScoringRequest([encode_mask(blob(5)), encode_mask(near)], truth.shape, encode_mask(truth))
    score = score_masks([request])[0]
    assert score.chosen == 1 and score.rle == encode_mask(near)
    assert score.iou == pytest.approx((near & truth).sum() / truth.sum())
    assert score.boundary_iou == pytest.approx(boundary_iou(near, truth))


def test_clicks_follow_while_something_is_wrong():
    truth = np.zeros((20, 20), bool)
    truth[2:9, 2:9] = True
    assert first_clicks([encode_mask(truth)]) == [[5.5, 5.5]]
    wrong = truth.copy()
    wrong[12:17, 12:17] = True
    clicked = np.array([[5.5, 5.5]])
    first, second = score_masks(
        [ScoringRequest([encode_mask(mask)], (20, 20), encode_mask(truth), clicked) for mask in (wrong, truth)]
    )
    assert first.click == ([14.5, 14.5], NEGATIVE) and first.boundary_iou is None
    assert second.click is None and second.boundary_iou == second.iou == 1
