from __future__ import annotations

import torch

from distill.prompts.types import NEGATIVE, PAD, PAINT_LOGIT, POSITIVE, Prompts, paint_prompts


def test_a_painted_box_is_the_ellipse_inscribed_in_it():
    """Prompt frame of 32 pixels, 8 cells: the box covers columns 1 and 2 wholly and half of 3, rows 0 and 1 wholly.

    Across the box the middles of the columns lie at -0.6, 0.2 and 1.0, those of the rows at -0.5 and 0.5.
    """
    prompts = Prompts(torch.tensor([0]), boxes_xyxy=torch.tensor([[4.0, 0.0, 14.0, 8.0]]))
    painted = paint_prompts(prompts, prompt_size=32, low_res_size=8)
    assert painted.shape == (1, 1, 8, 8)
    expected = torch.full((8, 8), -PAINT_LOGIT)
    expected[:2, 1] = PAINT_LOGIT * (1 - 0.36 - 0.25)
    expected[:2, 2] = PAINT_LOGIT * (1 - 0.04 - 0.25)
    expected[:2, 3] = PAINT_LOGIT * (0.5 * (1 - 1.0 - 0.25) - 0.5)  # half of the ellipse's, half of the outside's
    torch.testing.assert_close(painted[0, 0], expected)


def test_painted_clicks_have_their_sign_and_padding_leaves_no_trace():
    """Click at the centres of cells (row 1, column 2) and (row 6, column 5)."""
    points = torch.tensor([[[10.0, 6.0], [22.0, 26.0], [30.0, 2.0]]])
    labels = torch.tensor([[POSITIVE, NEGATIVE, PAD]])
    prompts = Prompts(torch.tensor([0]), points_xy=points, point_labels=labels)
    painted = paint_prompts(prompts, prompt_size=32, low_res_size=8)[0, 0]
    without_padding = Prompts(torch.tensor([0]), points_xy=points[:, :2], point_labels=labels[:, :2])
    torch.testing.assert_close(painted, paint_prompts(without_padding, prompt_size=32, low_res_size=8)[0, 0])
    assert divmod(int(painted.argmax()), 8) == (1, 2)
    assert divmod(int(painted.argmin()), 8) == (6, 5)
    torch.testing.assert_close(painted[1, 2], -painted[6, 5])
