"""Clicks into an error and the schedule of rounds, with numbers that a reader can check by hand."""

from __future__ import annotations

import pytest
import torch

from distill.config.schema import PromptConfig
from distill.prompts.refinement import draw_clicks, draw_rounds, refined
from distill.prompts.types import NEGATIVE, PAD, POSITIVE, Prompts

CELL, SIZE = 16, 12  # pixels of the prompt frame in a cell, cells a side


def cells(*rectangles: tuple[int, int, int, int]) -> torch.Tensor:
    """Return one mask (1, SIZE, SIZE) of rectangles (top, left, bottom, right)."""
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    for top, left, bottom, right in rectangles:
        mask[0, top:bottom, left:right] = True
    return mask


def clicks(predicted, wanted, *, valid=None, num=1, prompts=None, **options):  # type: ignore[no-untyped-def]
    noise = torch.rand(num, 3, generator=torch.Generator().manual_seed(0))
    if valid is None:
        valid = torch.ones_like(wanted)
    points, labels = draw_clicks(
        *(mask.expand(num, -1, -1) for mask in (predicted, wanted, valid)),
        noise,
        config=PromptConfig(**options),
        prompts=prompts or Prompts(torch.zeros(num, dtype=torch.long)),
        prompt_size=CELL * SIZE,
    )
    assert points.shape == (num, 1, 2) and labels.shape == (num, 1)
    return points[:, 0], labels[:, 0]


def test_clicks_are_uniform_in_the_error_with_its_sign() -> None:
    """Leave out two cells and add six: a quarter of the clicks is positive."""
    wanted, predicted = cells((0, 0, 1, 4)), cells((0, 0, 1, 2), (5, 5, 8, 7))
    points, labels = clicks(predicted, wanted, num=4000)
    assert (labels == POSITIVE).float().mean().item() == pytest.approx(0.25, abs=0.02)
    column, row = (points // CELL).long().unbind(1)
    assert torch.equal((labels == POSITIVE), wanted[0, row, column])
    assert (predicted ^ wanted)[0, row, column].all()
    hit = (row * SIZE + column).bincount()
    assert len(hit[hit > 0]) == 8 and (hit[hit > 0] - 500).abs().max() < 90


def test_the_centre_policy_clicks_the_middle_of_the_largest_error() -> None:
    """Leave out 3 x 3 around cell (row 2, column 3), and add 5 x 5 around cell (row 8, column 7)."""
    wanted, predicted = cells((1, 2, 4, 5)), cells((6, 5, 11, 10))
    points, labels = clicks(predicted, wanted, click="centre")
    assert points.tolist() == [[7.5 * CELL, 8.5 * CELL]] and labels.tolist() == [NEGATIVE]
    points, labels = clicks(cells(), wanted, click="centre")
    assert points.tolist() == [[3.5 * CELL, 2.5 * CELL]] and labels.tolist() == [POSITIVE]
    earlier = Prompts(torch.zeros(1, dtype=torch.long), points_xy=points[:, None], point_labels=labels[:, None])
    again, _ = clicks(cells(), wanted, click="centre", prompts=earlier)
    assert again.tolist() != points.tolist()


@pytest.mark.parametrize("click", ["uniform", "centre"])
def test_no_error_gives_no_click(click: str) -> None:
    points, labels = clicks(cells((0, 0, 3, 3)), cells((0, 0, 3, 3)), click=click)
    assert labels.tolist() == [PAD] and points.isfinite().all()


@pytest.mark.parametrize("click", ["uniform", "centre"])
def test_a_small_error_gives_none_either(click: str) -> None:
    """Ignore errors below ten cells, as EdgeSAM does."""
    for width, label in ((9, PAD), (10, POSITIVE)):
        assert clicks(cells(), cells((0, 0, 1, width)), click=click, min_error_cells=10)[1].tolist() == [label]


@pytest.mark.parametrize("click", ["uniform", "centre"])
def test_errors_in_the_padding_are_none(click: str) -> None:
    assert clicks(cells((8, 0, 12, 12)), cells(), valid=cells((0, 0, 8, 12)), click=click)[1].tolist() == [PAD]


def test_the_full_schedule_is_eleven_rounds() -> None:
    """Follow the SAM paper, appendix A: a prompt, eight clicks, a round without a click anywhere and one at the end."""
    config = PromptConfig(refine_clicks=8, mask_only_rounds=2)
    schedules = [draw_rounds(config, torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert all(len(rounds) == 10 and sum(rounds) == 8 and not rounds[-1] for rounds in schedules)
    assert {rounds.index(False) for rounds in schedules} == set(range(9))


@pytest.mark.parametrize(
    ("refine", "mask_only", "expected"), [(0, 0, []), (1, 0, [True]), (0, 1, [False]), (2, 1, [True, True, False])]
)
def test_short_schedules(refine: int, mask_only: int, expected: list[bool]) -> None:
    config = PromptConfig(refine_clicks=refine, mask_only_rounds=mask_only)
    assert draw_rounds(config, torch.Generator().manual_seed(0)) == expected


def test_clicks_and_masks_join_the_prompts() -> None:
    box = Prompts(torch.tensor([0, 1]), boxes_xyxy=torch.ones(2, 4))
    click = torch.full((2, 1, 2), 5.0), torch.tensor([[POSITIVE], [PAD]])
    once = refined(box, click, torch.zeros(2, 8, 8))
    assert once.points_xy.shape == (2, 1, 2) and once.mask_logits.shape == (2, 1, 8, 8)
    assert torch.equal(once.boxes_xyxy, box.boxes_xyxy)
    twice = refined(once, click, None)
    assert twice.point_labels.tolist() == [[POSITIVE, POSITIVE], [PAD, PAD]]
    assert twice.mask_logits is once.mask_logits
    assert refined(box, None, None) == box
