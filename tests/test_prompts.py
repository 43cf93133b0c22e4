from __future__ import annotations

import torch

from distill.config import PromptConfig
from distill.prompts import POSITIVE, draw_points, draw_prompts, jitter_boxes

PROMPT_SIZE = 1024


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_jitter_has_a_tenth_of_the_side_as_its_deviation() -> None:
    boxes = torch.tensor([[400.0, 400.0, 500.0, 450.0]]).expand(20000, -1)
    moved = jitter_boxes(boxes, PromptConfig(box_jitter_max_pixels=1000), PROMPT_SIZE, generator()) - boxes
    torch.testing.assert_close(moved.std(0), torch.tensor([10.0, 5.0, 10.0, 5.0]), rtol=0.03, atol=0)
    assert moved.mean(0).abs().max() < 0.3


def test_jitter_stops_at_twenty_pixels_of_a_1024_pixel_frame() -> None:
    boxes = torch.tensor([[200.0, 200.0, 800.0, 800.0]]).expand(1000, -1)
    assert (jitter_boxes(boxes, PromptConfig(), PROMPT_SIZE, generator()) - boxes).abs().max() == 20
    halved = jitter_boxes(boxes / 2, PromptConfig(), PROMPT_SIZE // 2, generator()) - boxes / 2
    assert halved.abs().max() == 10


def test_jitter_stays_in_the_frame() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1024.0, 1024.0]]).expand(100, -1)
    moved = jitter_boxes(boxes, PromptConfig(), PROMPT_SIZE, generator())
    assert moved.min() >= 0 and moved.max() <= PROMPT_SIZE


def test_points_lie_in_cells_that_are_covered_by_more_than_half() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[0, 2, 3] = 0.6
    masks[0, 2, 4] = 0.5
    points = draw_points(masks, 200, 128, generator())  # a cell is 16 pixels
    assert points.shape == (1, 200, 2)
    assert ((points[0, :, 0] >= 48) & (points[0, :, 0] < 64)).all()
    assert ((points[0, :, 1] >= 32) & (points[0, :, 1] < 48)).all()


def test_points_are_uniform_in_the_mask() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[0, 0, :4] = 1
    columns = (draw_points(masks, 8000, 128, generator())[0, :, 0] / 16).floor().long().bincount()
    assert (columns - 2000).abs().max() < 200


def test_a_thin_mask_gives_its_most_covered_cells() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[0, 1, 1], masks[0, 5, 5] = 0.2, 0.4
    points = draw_points(masks, 50, 128, generator())
    assert ((points // 16) == 5).all()


def test_every_instance_is_asked_about_once() -> None:
    masks = torch.ones(40, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 128.0, 128.0]]).expand(40, -1)
    image_index = torch.arange(40) // 10
    drawn = draw_prompts(
        masks, boxes, image_index, config=PromptConfig(box_share=0.5), prompt_size=128, generator=generator()
    )
    rows = torch.cat([rows for rows, _ in drawn])
    assert rows.sort().values.equal(torch.arange(40))
    for rows, prompts in drawn:
        assert prompts.image_index.equal(image_index[rows])
    boxes_group, points_group = (prompts for _, prompts in drawn)
    assert boxes_group.boxes_xyxy is not None and boxes_group.points_xy is None
    assert points_group.point_labels is not None and (points_group.point_labels == POSITIVE).all()


def test_the_share_decides_the_kind_and_the_generator_the_draw() -> None:
    masks, boxes, index = torch.ones(6, 8, 8), torch.ones(6, 4), torch.zeros(6, dtype=torch.long)
    only_boxes = PromptConfig(box_share=1.0)
    one = draw_prompts(masks, boxes, index, config=only_boxes, prompt_size=128, generator=generator(3))
    same = draw_prompts(masks, boxes, index, config=only_boxes, prompt_size=128, generator=generator(3))
    assert len(one) == 1
    assert torch.equal(one[0][1].boxes_xyxy, same[0][1].boxes_xyxy)
