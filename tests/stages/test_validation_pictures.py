"""Pictures show what they are given, where it is."""

from __future__ import annotations

import numpy as np
import torch

from distill.data.painting import BOX_COLOUR, POSITIVE_COLOUR
from distill.geometry import letterbox
from distill.stages.validation_pictures import (
    PANEL_SIZE,
    TITLE_HEIGHT,
    Picture,
    photo_from_pixels,
    render_pictures,
)


def grey_picture(height: int, width: int) -> Picture:
    mask = np.zeros((height, width), bool)
    mask[: height // 2] = True
    photo = np.full((height, width, 3), 100, np.uint8)
    return Picture(photo, np.array([8.0, 8, 24, 24]), np.array([32.0, 16.0]), {"truth": mask, "student": ~mask})


def test_panels_hold_prompt_and_masks():
    grid = render_pictures([grey_picture(48, 64), grey_picture(64, 64)])
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, TITLE_HEIGHT + 2 * PANEL_SIZE, 3 * PANEL_SIZE)
    scale = PANEL_SIZE // 64
    first_row = grid[:, TITLE_HEIGHT:]
    assert tuple(first_row[:, 8 * scale, 16 * scale].tolist()) == BOX_COLOUR
    assert tuple(first_row[:, 16 * scale, 32 * scale].tolist()) == POSITIVE_COLOUR
    truth, student = first_row[:, :, PANEL_SIZE : 2 * PANEL_SIZE], first_row[:, :, 2 * PANEL_SIZE :]
    assert truth[0, 10, 10] > 150 and student[0, 10, 10] == 100  # masks are red
    assert truth[0, 40 * scale, 10] == 100 and student[0, 40 * scale, 10] > 150


def test_the_photo_comes_back_from_an_encoders_input():
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(photo_from_pixels(letterbox(photo, 64), (48, 64)), photo)
