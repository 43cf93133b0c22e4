from __future__ import annotations

import math

import pytest
import torch

from distill.config.schema import MaskLossConfig
from distill.losses.mask import (
    bce_loss,
    candidate_iou,
    dice_loss,
    focal_loss,
    imitation_losses,
    mask_losses,
    noise_points,
    sample_points,
)

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
    torch.manual_seed(0)  # of the points
    predictions = torch.tensor([[0.0, 1.0]]).expand(3, -1)
    terms = mask_losses(logits, predictions, target, valid, config=config)
    assert terms.best.tolist() == [1, 1, 1]
    if num_points == 0:  # points lie on the border, where a soft target costs something
        assert terms.total(config).item() == pytest.approx(0, abs=1e-2)
    worse = mask_losses(logits, 1 - predictions, target, valid, config=config)
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
    noise = torch.rand(1, noise_points(400), 2, generator=torch.Generator().manual_seed(0))
    sampled, truth, kept = sample_points(logits, target[:, None], valid, num_points=400, noise=noise)
    assert sampled.shape == (1, 2, 400) and truth.shape == (1, 1, 400) and kept.shape == (1, 400) and kept.all()
    assert (sampled[0, 0].abs() < 10).float().mean() > 0.5  # a sixth of the valid area, but most of the points
    assert (truth < 0.51).all()  # half a cell of the border may leak in by interpolation
    assert torch.equal(sampled[:, 0], sampled[:, 1])


def test_weights_are_those_of_the_prompts() -> None:
    logits, target, valid = two_candidates()
    logits[1] = 0.0  # the second prompt's candidates are unsure
    config, predictions = MaskLossConfig(mask="bce"), torch.ones(3, 2)
    every = [
        mask_losses(logits[i : i + 1], predictions[i : i + 1], target[i : i + 1], valid[i : i + 1], config=config)
        for i in range(3)
    ]
    weight = torch.tensor([0.5, 2.0, 0.0])
    terms = mask_losses(logits, predictions, target, valid, config=config, weight=weight)
    for name in ("mask", "dice", "iou"):
        by_hand = sum(w * getattr(one, name) for w, one in zip(weight, every, strict=True))
        torch.testing.assert_close(getattr(terms, name), by_hand)
    mean = mask_losses(logits, predictions, target, valid, config=config)
    torch.testing.assert_close(mean.dice, sum(one.dice for one in every) / 3)


def test_a_mask_thinner_than_half_a_cell_has_an_iou() -> None:
    """Cover one cell by 0.3 and one by 0.1: the better covered cell is the mask."""
    target = torch.zeros(1, 4, 4)
    target[0, 1, 1], target[0, 2, 2] = 0.3, 0.1
    logits = torch.full((1, 2, 4, 4), -5.0)
    logits[0, 0, 1, 1] = 5.0
    logits[0, 1, 2, 2] = 5.0
    assert candidate_iou(logits, target, torch.ones(1, 4, 4, dtype=torch.bool)).tolist() == [[1.0, 0.0]]


def imitation_by_hand(**options):  # type: ignore[no-untyped-def]
    """Compute one prompt with one candidate, two cells that count and one that is padding."""
    student, teacher = torch.tensor([1.0, -2.0, 9.0]), torch.tensor([2.0, 1.0, -9.0])
    valid = torch.tensor([True, True, False])
    return imitation_losses(
        student.view(1, 1, 1, 3),
        torch.tensor([[0.5]]),
        teacher.view(1, 1, 1, 3),
        torch.tensor([[0.9]]),
        valid.view(1, 1, 3),
        **{"config": MaskLossConfig(mask="bce"), "labels": "hard", **options},
    )


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_imitation_by_hand() -> None:
    """Use hard labels of 1 and 1: BCE is softplus(-1) and softplus(2)."""
    terms = imitation_by_hand()
    assert terms.mask.item() == pytest.approx((softplus(-1) + softplus(2)) / 2)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    assert terms.dice.item() == pytest.approx(1 - (2 * (p + q) + 1) / (p + q + 2 + 1))
    assert terms.logit.item() == pytest.approx((1 + 9) / 2)
    assert terms.iou.item() == pytest.approx(0.16)
    total = terms.total(MaskLossConfig(mask_weight=5, dice_weight=5, logit_weight=2, teacher_iou_weight=3), 0.5)
    assert total.item() == pytest.approx(2.5 * (terms.mask + terms.dice).item() + 10 + 0.48)


def test_soft_labels_are_the_teachers_probabilities() -> None:
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    by_hand = (p * softplus(-1) + (1 - p) * softplus(1) + q * softplus(2) + (1 - q) * softplus(-2)) / 2
    assert imitation_by_hand(labels="soft").mask.item() == pytest.approx(by_hand)


def test_each_candidate_imitates_the_teachers_of_the_same_token() -> None:
    logits, _, valid = two_candidates()
    iou = torch.ones(3, 2)
    config = MaskLossConfig(mask="bce")
    same = imitation_losses(logits, iou, logits, iou, valid, config=config, labels="hard")
    swapped = imitation_losses(logits, iou, logits.flip(1), iou, valid, config=config, labels="hard")
    assert same.mask < 1e-3 and same.logit == same.iou == 0
    assert swapped.mask.item() == pytest.approx(10, rel=1e-3) and swapped.logit.item() == pytest.approx(400)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_imitation_at_points_sees_one_point_set(labels) -> None:  # type: ignore[no-untyped-def]
    """Use the teacher as the student: at any points the hard loss is BCE of certain logits, and the logits agree."""
    logits, _, valid = two_candidates()
    iou = torch.ones(3, 2)
    config = MaskLossConfig(mask="bce", num_points=100)
    terms = imitation_losses(logits, iou, logits, iou, valid, config=config, labels=labels)
    assert terms.logit == 0 and terms.dice < 0.3
