from __future__ import annotations

import math

import pytest
import torch

from distill.config import MaskLossConfig
from distill.losses.mask import bce_loss, candidate_iou, dice_loss, focal_loss, mask_losses, sample_points

VALID = torch.ones(2, dtype=torch.bool)
# two pixels: probability 0.8 on the object, 0.4 beside it
LOGITS = torch.tensor([math.log(0.8 / 0.2), math.log(0.4 / 0.6)])
TARGET = torch.tensor([1.0, 0.0])


def test_bce_of_two_pixels() -> None:
    assert bce_loss(LOGITS, TARGET, VALID).item() == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)


def test_focal_of_two_pixels() -> None:
    by_hand = (0.25 * 0.2**2 * -math.log(0.8) + 0.75 * 0.4**2 * -math.log(0.6)) / 2
    assert focal_loss(LOGITS, TARGET, VALID).item() == pytest.approx(by_hand)


def test_dice_of_two_pixels() -> None:
    assert dice_loss(LOGITS, TARGET, VALID).item() == pytest.approx(1 - (2 * 0.8 + 1) / (1.2 + 1 + 1))


@pytest.mark.parametrize("loss", [bce_loss, focal_loss, dice_loss])
def test_padding_has_no_influence(loss) -> None:  # type: ignore[no-untyped-def]
    padded = torch.cat([LOGITS, torch.tensor([7.0, -3.0])])
    target = torch.cat([TARGET, torch.tensor([0.0, 1.0])])
    valid = torch.tensor([True, True, False, False])
    torch.testing.assert_close(loss(padded, target, valid), loss(LOGITS, TARGET, VALID))


@pytest.mark.parametrize("loss", [bce_loss, focal_loss, dice_loss])
def test_a_sure_and_right_answer_costs_nothing(loss) -> None:  # type: ignore[no-untyped-def]
    target = torch.randint(0, 2, (50,), generator=torch.Generator().manual_seed(0)).float()
    assert loss((target - 0.5) * 200, target, torch.ones(50, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-4)


def two_candidates() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target = torch.zeros(3, 8, 8)
    target[:, 2:6, 2:6] = 1
    right = (target - 0.5) * 20
    logits = torch.stack([-right, right], 1)  # (3, 2, 8, 8): the second one is right
    return logits, target, torch.ones(3, 8, 8, dtype=torch.bool)


@pytest.mark.parametrize("num_points", [0, 40])
def test_the_best_candidate_counts_and_all_learn_their_iou(num_points: int) -> None:
    logits, target, valid = two_candidates()
    config = MaskLossConfig(num_points=num_points)
    generator = torch.Generator().manual_seed(0)
    predictions = torch.tensor([[0.0, 1.0]]).expand(3, -1)
    terms = mask_losses(logits, predictions, target, valid, config=config, generator=generator)
    assert terms.best.tolist() == [1, 1, 1]
    if num_points == 0:  # points lie on the border, where a soft target costs something
        assert terms.total(config).item() == pytest.approx(0, abs=1e-2)
    worse = mask_losses(logits, 1 - predictions, target, valid, config=config, generator=generator)
    assert worse.iou.item() == pytest.approx(1)


def test_candidate_iou_ignores_the_padding() -> None:
    logits, target, valid = two_candidates()
    assert candidate_iou(logits, target, valid)[0].tolist() == [0, 1]
    logits[:, :, 6:] = 9
    valid[:, 6:] = False
    assert candidate_iou(logits, target, valid)[0, 1] == 1


def test_points_are_drawn_where_the_candidates_are_unsure_and_never_in_the_padding() -> None:
    logits = torch.full((1, 2, 16, 16), 10.0)
    logits[:, :, :, 4:6] = 0.0  # unsure in two columns
    target = torch.zeros(1, 16, 16)
    target[:, :, 12:] = 1
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[:, :, :12] = True  # the columns from 12 on are padding
    sampled, truth, kept = sample_points(
        logits, target, valid, num_points=400, generator=torch.Generator().manual_seed(0)
    )
    assert sampled.shape == (1, 2, 400) and truth.shape == kept.shape == (1, 400)
    assert (sampled[0, 0].abs() < 10).float().mean() > 0.5  # a sixth of the valid area, but most of the points
    assert (truth < 0.51).all()  # half a cell of the border may leak in by interpolation
    assert torch.equal(sampled[:, 0], sampled[:, 1])
