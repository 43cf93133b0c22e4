"""Properties of the feature losses, and two-pixel cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from distill.config.schema import FeatureLossConfig
from distill.losses.feature import (
    feature_losses,
    masked_cosine,
    masked_huber,
    masked_mse,
    relation,
    resize_to_grid,
)

LOSSES = [masked_mse, masked_cosine, masked_huber, relation]
ALL_TERMS = FeatureLossConfig(mse=1.0, cosine=2.0, huber=3.0, relation=4.0)


def random_embeddings(seed: int, num_images: int = 2, grid: int = 4) -> torch.Tensor:
    return torch.randn(num_images, 8, grid, grid, generator=torch.Generator().manual_seed(seed))


def half_valid(num_images: int = 2, grid: int = 4) -> torch.Tensor:
    valid = torch.zeros(num_images, grid, grid, dtype=torch.bool)
    valid[:, : grid // 2] = True
    return valid


def two_pixels(values: list[list[float]], grid: int = 2) -> torch.Tensor:
    """Return a (1, C, 2, 2) embedding. Its first row holds two positions of C values, its second row is padding."""
    embeddings = torch.full((1, len(values[0]), grid, grid), 100.0)
    embeddings[0, :, 0] = torch.tensor(values).T
    return embeddings


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_when_identical(loss):
    embeddings = random_embeddings(0)
    assert loss(embeddings, embeddings.clone(), half_valid()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_positive_when_different(loss):
    assert loss(random_embeddings(0), random_embeddings(1), half_valid()) > 0.01


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("filling", [1e4, math.inf, math.nan])
def test_padding_has_no_influence(loss, filling):
    student, teacher, valid = random_embeddings(0), random_embeddings(1), half_valid()
    expected = loss(student, teacher, valid)
    student[:, :, 2:] = filling
    student.requires_grad_()
    value = loss(student, teacher, valid)
    torch.testing.assert_close(value, expected)
    if math.isfinite(filling):
        value.backward()
        assert student.grad is not None
        assert student.grad[:, :, 2:].abs().max() == 0
        assert student.grad[:, :, :2].abs().max() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_each_image_counts_the_same(loss):
    """Compare a batch's loss with the mean of its images' own losses, whatever share of each image is valid."""
    student, teacher = random_embeddings(0, 3), random_embeddings(1, 3)
    valid = torch.zeros(3, 4, 4, dtype=torch.bool)
    valid[0], valid[1, :1], valid[2, :, :2] = True, True, True
    alone = [loss(student[i : i + 1], teacher[i : i + 1], valid[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(loss(student, teacher, valid), torch.stack(alone).mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_an_image_without_a_valid_position_counts_as_zero(loss):
    student, teacher = random_embeddings(0), random_embeddings(1)
    valid = half_valid()
    valid[1] = False
    torch.testing.assert_close(loss(student, teacher, valid), loss(student[:1], teacher[:1], valid[:1]) / 2)


def test_mse_of_two_pixels():
    # squared errors 1, 9 | 0, 4: channel means 5 and 2, their mean 3.5
    value = masked_mse(two_pixels([[1, 3], [0, 2]]), two_pixels([[0, 0], [0, 0]]), half_valid(1, 2))
    assert value.item() == pytest.approx(3.5)


def test_huber_of_two_pixels():
    # beyond 1 linear: |3| - 0.5 = 2.5; within 1 half the square: 0.125 for 0.5
    value = masked_huber(two_pixels([[3, 0.5], [0, 0]]), two_pixels([[0, 0], [0, 0]]), half_valid(1, 2))
    assert value.item() == pytest.approx((2.5 + 0.125) / 4)


def test_cosine_of_two_pixels():
    # one position at 90 degrees, one at 180: (1 + 2) / 2
    value = masked_cosine(two_pixels([[2, 0], [0, 3]]), two_pixels([[0, 1], [0, -1]]), half_valid(1, 2))
    assert value.item() == pytest.approx(1.5)


def test_relation_of_two_pixels():
    """Compare a teacher whose positions attend as softmax(1, 0) with a student whose positions attend equally."""
    scale = 2**0.25  # so that the dot products over sqrt(C = 2) are 1 and 0
    teacher = two_pixels([[scale, 0], [0, scale]])
    student = two_pixels([[0, 0], [0, 0]])
    p = math.e / (math.e + 1)
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert relation(student, teacher, half_valid(1, 2)).item() == pytest.approx(expected, rel=1e-5)


def test_cosine_ignores_scale_and_mse_does_not():
    student, valid = random_embeddings(0), half_valid()
    assert masked_cosine(student, 3 * student, valid).item() == pytest.approx(0, abs=1e-6)
    assert masked_mse(student, 3 * student, valid) > 1


def test_relation_takes_every_other_position_of_a_large_grid():
    student, teacher = random_embeddings(0, 1, 64), random_embeddings(1, 1, 64)
    valid = half_valid(1, 64)
    torch.testing.assert_close(relation(student, teacher, valid), relation(student, teacher, valid, stride=2))


def test_terms_and_their_weighted_sum():
    student, teacher, valid = random_embeddings(0), random_embeddings(1), half_valid()
    terms = feature_losses(student, teacher, valid, ALL_TERMS)
    assert list(terms) == ["loss", "mse", "cosine", "huber", "relation"]
    expected = terms["mse"] + 2 * terms["cosine"] + 3 * terms["huber"] + 4 * terms["relation"]
    torch.testing.assert_close(terms["loss"], expected)


def test_a_term_of_weight_zero_is_left_out():
    terms = feature_losses(random_embeddings(0), random_embeddings(1), half_valid(), FeatureLossConfig(cosine=0.5))
    assert list(terms) == ["loss", "mse", "cosine"]


def test_gradient_reaches_the_student():
    student = random_embeddings(0).requires_grad_()
    feature_losses(student, random_embeddings(1), half_valid(), ALL_TERMS)["loss"].backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student, teacher, valid = random_embeddings(0).half(), random_embeddings(1).half(), half_valid()
    terms = feature_losses(1000 * student, teacher, valid, FeatureLossConfig())  # squares overflow float16
    assert terms["mse"].dtype == torch.float32
    assert terms["mse"].isfinite()


def test_a_student_of_another_grid_is_resized():
    student, teacher, valid = random_embeddings(0, grid=2), random_embeddings(1, grid=4), half_valid()
    resized = torch.nn.functional.interpolate(student, (4, 4), mode="bilinear", align_corners=False)
    terms = feature_losses(student, teacher, valid, FeatureLossConfig())
    torch.testing.assert_close(terms["mse"], masked_mse(resized, teacher, valid))
    assert resize_to_grid(teacher, 4) is teacher
