from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.data.synthetic.drawings import Drawings, outlines
from distill.data.synthetic.scenes import Scene
from distill.data.synthetic.teacher_scenes import Collate, LabelledSet, TeacherScenes, cut_window


def bright_square() -> Scene:
    """Return a dark photo with a bright square in it, which is its instance."""
    pixels, mask = np.full((90, 120, 3), 20, np.uint8), np.zeros((1, 90, 120), bool)
    mask[0, 30:60, 40:80] = True
    pixels[mask[0]] = 220
    return Scene(pixels, mask)


def test_a_scene_is_decided_by_its_place_in_the_whole_training() -> None:
    sets = [LabelledSet([bright_square()], 1.0)]
    whole = TeacherScenes(sets, num_scenes=6, size=64, seed=3)
    resumed = TeacherScenes(sets, num_scenes=6, size=64, seed=3, first=4)
    assert all((whole[4 + i].pixels == resumed[i].pixels).all() for i in range(2))
    assert not (whole[0].pixels.shape == whole[1].pixels.shape and (whole[0].pixels == whole[1].pixels).all())


def test_sets_are_drawn_by_their_shares() -> None:
    dark = Scene(np.zeros((60, 60, 3), np.uint8), np.ones((1, 60, 60), bool))
    scenes = TeacherScenes(
        [LabelledSet([dark], 0.0), LabelledSet([bright_square()], 2.0)], num_scenes=8, size=32, seed=0
    )
    assert all(scene.pixels.max() > 100 for scene in map(scenes.__getitem__, range(8)))


@pytest.mark.parametrize("seed", range(10))
def test_a_window_keeps_pixels_and_masks_together(seed: int) -> None:
    window = cut_window(np.random.default_rng(seed), bright_square(), 64)
    assert max(window.pixels.shape[:2]) == 64 and window.masks.shape[1:] == window.pixels.shape[:2]
    for mask in window.masks:
        assert np.median(window.pixels[mask]) > 100
        assert mask.all() or np.median(window.pixels[~mask]) < 100


def test_masks_and_boxes_of_a_batch_are_in_the_frames_of_the_model() -> None:
    batch = Collate(64, 8)([bright_square()])
    assert batch.pixels.shape == (1, 3, 64, 64) and batch.masks is not None and batch.masks.shape == (1, 32, 32)
    assert batch.boxes_xyxy is not None
    torch.testing.assert_close(batch.boxes_xyxy, torch.tensor([[40.0, 30.0, 80.0, 60.0]]) * 128 / 120)


def test_drawings_show_their_shapes_and_repeat() -> None:
    bank = outlines([bright_square()])
    first, again = (Drawings(bank, num_batches=2, grid=8, seed=1, first=first)[1 - first] for first in (0, 1))
    assert first.pixels.equal(again.pixels) and first.pixels.shape[1:] == (3, 32, 32)
    assert first.masks is not None and first.boxes_xyxy is not None and first.mask_image_index is not None
    assert (first.mask_image_index.diff() >= 0).all() and len(first.masks) > 20
    for mask, box in zip(first.masks, first.boxes_xyxy / 4, strict=True):
        left, top, right, bottom = box.long().tolist()
        covered = mask > 0.5
        outside = covered.clone()
        outside[top:bottom, left:right] = False
        assert not outside.any() and (not covered.any() or covered[top:bottom, left:right].any())
