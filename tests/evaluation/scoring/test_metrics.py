"""IoU and its groups by size, the agreement of embeddings."""

from __future__ import annotations

import pytest
import torch

from distill.evaluation.scoring.metrics import Calibration, EmbeddingCosine, MaskIoU, MeanBySize, size_groups


def test_groups_follow_cocos_areas():
    metric = MaskIoU()
    areas = torch.tensor([32**2 - 1, 32**2, 96**2 - 1, 96**2, 1e6])
    metric.update(torch.tensor([0.1, 0.2, 0.4, 0.6, 1.0]), areas)
    scores = {name: value.item() for name, value in metric.compute().items()}
    assert scores == pytest.approx(
        {"miou": 0.46, "miou_large": 0.8, "miou_medium": 0.3, "miou_small": 0.1, "num_instances": 5}
    )


def test_empty_groups_are_nan():
    metric = MaskIoU()
    metric.update(torch.tensor([0.5]), torch.tensor([10.0]))
    scores = metric.compute()
    assert scores["miou"] == scores["miou_small"] == 0.5
    assert scores["miou_large"].isnan() and scores["miou_medium"].isnan()


def test_updates_add_up():
    iou, areas = torch.rand(20), torch.rand(20) * 2e4
    whole, parts = MaskIoU(), MaskIoU()
    whole.update(iou, areas)
    for rows in (slice(0, 3), slice(3, 3), slice(3, 20)):
        parts.update(iou[rows], areas[rows])
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts.compute()[name], value, equal_nan=True)


def test_cosine_of_each_image_counts_the_same():
    teacher = torch.ones(2, 1, 2, 2)
    student = torch.ones(2, 1, 2, 2)
    student[0, 0, 1] = -1  # padding of the first photo
    student[1, 0, 1, 1] = -1  # one of four positions of the second: mean (3 - 1) / 4
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[0, 1] = False
    metric = EmbeddingCosine()
    metric.update(student, teacher, valid)
    assert metric.compute().item() == pytest.approx((1 + 0.5) / 2)


def test_cosine_resizes_the_student():
    metric = EmbeddingCosine()
    metric.update(torch.full((1, 3, 2, 2), 5.0), torch.ones(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))
    assert metric.compute().item() == pytest.approx(1)


def test_calibration_is_pearsons_and_the_mean_error():
    predicted, iou = torch.rand(50), torch.rand(50)
    metric = Calibration()
    for rows in (slice(0, 20), slice(20, 50)):
        metric.update(predicted[rows], iou[rows])
    found = metric.compute()
    expected = torch.corrcoef(torch.stack([predicted, iou]).double())[0, 1].item()  # float32 is less exact near 0
    assert found["iou_correlation"].item() == pytest.approx(expected)
    assert found["iou_error"].item() == pytest.approx((predicted - iou).abs().mean().item())


def test_calibration_of_a_model_that_always_says_the_same():
    metric = Calibration()
    metric.update(torch.full((3,), 0.7), torch.tensor([0.1, 0.5, 0.9]))
    assert metric.compute()["iou_correlation"].isnan()
    assert metric.compute()["iou_error"].item() == pytest.approx((0.6 + 0.2 + 0.2) / 3)


def test_any_score_by_size():
    metric = MeanBySize("boundary_iou")
    metric.update(torch.tensor([0.2, 0.4]), torch.tensor([1e5, 10.0]))
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found["boundary_iou"] == pytest.approx(0.3) and found["boundary_iou_large"] == pytest.approx(0.2)
    assert found["boundary_iou_medium"] != found["boundary_iou_medium"]  # NaN


def test_an_object_at_a_bound_belongs_to_both_sizes_by_published_rules():
    areas = torch.tensor([1023.0, 1024, 1025, 9215, 9216, 9217])
    _, large, medium, small = size_groups(areas).int().tolist()
    assert (large, medium, small) == ([0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0])
    _, large, medium, small = size_groups(areas, closed=True).int().tolist()
    assert (large, medium, small) == ([0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0])
