"""Draws whose numbers a reader can check by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.config.schema import PromptConfig
from distill.prompts.sampling import (
    Instances,
    covered_cells,
    draw_cells,
    draw_instances,
    draw_points,
    draw_prompts,
    jitter_boxes,
)
from distill.prompts.seeded_noise import SampleNoise
from distill.prompts.types import NEGATIVE, PAD, POSITIVE

PROMPT_SIZE = 1024


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator())


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator())


# --- instances -------------------------------------------------------------------------------------------------------


def drawn(areas: list[float], num: int, *, odds: str = "uniform", draw: str = "distinct", seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return draw_instances(np.array(areas, float), num, odds=odds, draw=draw, rng=rng).tolist()  # type: ignore[arg-type]


def test_areas_of_one_two_and_five_are_drawn_one_two_and_five_times_in_eight() -> None:
    counts = np.bincount([drawn([1, 2, 5], 1, odds="area", seed=seed)[0] for seed in range(4000)])
    assert counts / 4000 == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)
    twice = np.bincount(
        sum((drawn([1, 2, 5], 2, odds="area", draw="replacement", seed=seed) for seed in range(2000)), [])
    )
    assert twice / 4000 == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)


def test_uniform_odds_do_not_know_areas() -> None:
    counts = np.bincount([drawn([1, 2, 5], 1, seed=seed)[0] for seed in range(3000)])
    assert counts / 3000 == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("odds", ["uniform", "area"])
def test_more_are_asked_for_than_there_are(odds: str) -> None:
    areas = [3.0, 1.0, 2.0]
    assert drawn(areas, 8, odds=odds) == [0, 1, 2]
    assert drawn(areas, 8, odds=odds, draw="replacement") == [0, 1, 2]  # EdgeSAM takes what there is
    filled = np.bincount(drawn(areas, 8, odds=odds, draw="repeat"))
    assert sorted(filled) == [2, 3, 3]  # all twice, and two of them again
    assert drawn(areas, 3, odds=odds, draw="repeat") == [0, 1, 2]


def test_replacement_may_draw_one_twice_and_distinct_never() -> None:
    assert any(len(set(drawn([1] * 6, 5, draw="replacement", seed=seed))) < 5 for seed in range(20))
    assert all(
        len(set(drawn([1] * 6, 5, draw=draw, seed=seed))) == 5 for seed in range(20) for draw in ("distinct", "repeat")
    )


@pytest.mark.parametrize("odds", ["uniform", "area"])
@pytest.mark.parametrize("draw", ["distinct", "repeat", "replacement"])
def test_a_photo_without_instances_gives_none(odds: str, draw: str) -> None:
    assert drawn([], 4, odds=odds, draw=draw) == []


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_jitter_has_a_tenth_of_the_side_as_its_deviation() -> None:
    boxes = torch.tensor([[400.0, 400.0, 500.0, 450.0]]).expand(20000, -1)
    config = PromptConfig(box_jitter_max_pixels=1000)
    moved = jitter_boxes(boxes, normal(20000, 4), config, PROMPT_SIZE) - boxes
    torch.testing.assert_close(moved.std(0), torch.tensor([10.0, 5.0, 10.0, 5.0]), rtol=0.03, atol=0)
    assert moved.mean(0).abs().max() < 0.3


def test_jitter_of_known_noise() -> None:
    """Move a box of 100 x 50: one deviation is 10 pixels across and 5 down, and three across are limited to 20."""
    boxes = torch.tensor([[400.0, 400.0, 500.0, 450.0]])
    moved = jitter_boxes(boxes, torch.tensor([[1.0, -1.0, 3.0, 0.0]]), PromptConfig(), PROMPT_SIZE)
    assert moved.tolist() == [[410.0, 395.0, 520.0, 450.0]]


def test_jitter_stops_at_twenty_pixels_of_a_1024_pixel_frame() -> None:
    boxes = torch.tensor([[200.0, 200.0, 800.0, 800.0]]).expand(1000, -1)
    noise = normal(1000, 4)
    assert (jitter_boxes(boxes, noise, PromptConfig(), PROMPT_SIZE) - boxes).abs().max() == 20
    halved = jitter_boxes(boxes / 2, noise, PromptConfig(), PROMPT_SIZE // 2) - boxes / 2
    assert halved.abs().max() == 10


def test_jitter_stays_in_the_frame() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1024.0, 1024.0]]).expand(100, -1)
    moved = jitter_boxes(boxes, normal(100, 4), PromptConfig(), PROMPT_SIZE)
    assert moved.min() >= 0 and moved.max() <= PROMPT_SIZE


# --- points ----------------------------------------------------------------------------------------------------------


def test_points_lie_in_cells_that_are_covered_by_more_than_half() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[0, 2, 3] = 0.6
    masks[0, 2, 4] = 0.5
    points = draw_points(masks, uniform(1, 200, 3), 128)  # a cell is 16 pixels
    assert points.shape == (1, 200, 2)
    assert ((points[0, :, 0] >= 48) & (points[0, :, 0] < 64)).all()
    assert ((points[0, :, 1] >= 32) & (points[0, :, 1] < 48)).all()


def test_points_are_uniform_in_the_mask() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[0, 0, :4] = 1
    columns = (draw_points(masks, uniform(1, 8000, 3), 128)[0, :, 0] / 16).floor().long().bincount()
    assert (columns - 2000).abs().max() < 200


def test_a_thin_mask_gives_its_most_covered_cells() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[0, 1, 1], masks[0, 5, 5] = 0.2, 0.4
    points = draw_points(masks, uniform(1, 50, 3), 128)
    assert ((points // 16) == 5).all()


def test_a_mask_that_covers_nothing_has_no_cells() -> None:
    masks = torch.zeros(2, 4, 4)
    masks[1, 0, 0] = 1e-3
    assert covered_cells(masks).flatten(1).sum(1).tolist() == [0, 1]
    assert draw_points(masks, uniform(2, 3, 3), 64).isfinite().all()


def test_the_quantiles_of_a_region_are_its_cells_in_order() -> None:
    region = torch.tensor([[[False, True, False], [True, False, True]], [[False] * 3] * 2])  # cells 1, 3 and 5; none
    noise = torch.tensor([0.0, 0.33, 0.34, 0.66, 0.67, 1 - 2**-24]).expand(2, -1)
    assert draw_cells(region, noise).tolist() == [[1, 1, 3, 3, 5, 5], [0] * 6]


# --- prompts ---------------------------------------------------------------------------------------------------------


def full_instances(num: int, per_photo: int = 10) -> Instances:
    return Instances(
        masks=torch.ones(num, 8, 8),
        valid=torch.ones(num, 8, 8, dtype=torch.bool),
        image_index=torch.arange(num) // per_photo,
        boxes_xyxy=torch.tensor([[0.0, 0.0, 128.0, 128.0]]).expand(num, -1),
    )


def prompts_of(instances: Instances, config: PromptConfig, step: int = 0):  # type: ignore[no-untyped-def]
    counts = instances.image_index.bincount().tolist()
    keys = [f"photo{i}" for i in range(len(counts))]
    return draw_prompts(
        instances,
        config=config,
        prompt_size=128,
        kinds=SampleNoise(keys, counts, seed=0, step=step, purpose="kinds").uniform(2),
        noise=SampleNoise(keys, counts, seed=0, step=step, purpose="prompts"),
        generator=generator(step),
    )


def test_every_instance_is_asked_about_once() -> None:
    instances = full_instances(40)
    groups = prompts_of(instances, PromptConfig(box_share=0.6, box_points_share=0.5))
    assert torch.cat([group.rows for group in groups]).sort().values.equal(torch.arange(40))
    for group in groups:
        assert group.prompts.image_index.equal(instances.image_index[group.rows])
    boxes, both, points = (group.prompts for group in groups)
    assert boxes.boxes_xyxy is not None and boxes.points_xy is None
    assert both.boxes_xyxy is not None and both.points_xy is not None
    assert points.boxes_xyxy is None and (points.point_labels == POSITIVE).all()


def test_shares_are_those_of_the_instances() -> None:
    groups = prompts_of(full_instances(4000, 1000), PromptConfig(box_share=0.6, box_points_share=0.25))
    assert [len(group.rows) / 4000 for group in groups] == pytest.approx([0.45, 0.15, 0.4], abs=0.03)


@pytest.mark.parametrize(("share", "has_box"), [(1.0, True), (0.0, False)])
def test_a_kind_without_an_instance_is_left_out(share: float, has_box: bool) -> None:
    groups = prompts_of(full_instances(6), PromptConfig(box_share=share))
    assert [group.prompts.boxes_xyxy is not None for group in groups] == [has_box]


def test_the_number_of_points_lies_in_its_range() -> None:
    config = PromptConfig(box_share=0.0, min_points=2, max_points=4)
    found = {prompts_of(full_instances(3), config, step)[0].prompts.points_xy.shape[1] for step in range(40)}
    assert found == {2, 3, 4}


def test_negative_points_lie_outside_the_mask_and_on_the_photo() -> None:
    instances = full_instances(3)
    instances.masks[0] = 0
    instances.masks[0, :, :4] = 1.0  # the left half
    instances.masks[0, :, 4] = 0.2  # its soft border
    instances.valid[0, 6:] = False
    config = PromptConfig(box_share=0.0, max_points=1, max_negative_points=5)
    most = max(
        (prompts_of(instances, config, step)[0].prompts for step in range(10)), key=lambda p: p.points_xy.shape[1]
    )
    negative, labels = most.points_xy[:, 1:], most.point_labels[:, 1:]  # a cell is 16 pixels
    assert (labels[0] == NEGATIVE).all() and len(labels[0]) == 5
    assert (negative[0, :, 0] >= 80).all() and (negative[0, :, 1] < 96).all()
    assert (labels[1:] == PAD).all(), "a mask that fills its photo has no outside"


def test_the_first_point_at_the_centre() -> None:
    instances = full_instances(2)
    instances.masks[0] = 0
    instances.masks[0, 1:6, 2:7] = 1.0  # rows 1 to 5, columns 2 to 6: the centre is cell (3, 4)
    config = PromptConfig(box_share=0.0, points="centre", min_points=2, max_points=2)
    points = prompts_of(instances, config)[0].prompts.points_xy
    assert points.shape == (2, 2, 2) and points[0, 0].tolist() == [4.5 * 16, 3.5 * 16]
