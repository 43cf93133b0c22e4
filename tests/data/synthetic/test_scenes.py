from __future__ import annotations

import numpy as np
import pytest

from distill.data.synthetic.scenes import (
    Cutout,
    Scene,
    compose,
    cut_instance,
    paste,
    random_outline,
    vary_cutout,
    without_instances,
)
from distill.data.synthetic.source_photos import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, load_photographs
from distill.data.synthetic.teacher_scenes import cut_window


def photo(height: int = 60, width: int = 80, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("seed", range(30))
def test_outlines_are_neither_empty_nor_full(seed: int) -> None:
    mask = random_outline(np.random.default_rng(seed), 64)
    assert mask.shape == (64, 64) and mask.dtype == bool
    assert 0.005 < mask.mean() < 0.95


def test_a_pasted_object_is_seen_where_its_mask_is_and_hides_what_is_below() -> None:
    rng = np.random.default_rng(0)
    below = Scene(photo(), np.ones((1, 60, 80), bool))
    cutout = Cutout(photo(30, 30, 250), np.ones((30, 30), bool))
    scene = paste(rng, below, cutout)
    under, pasted = scene.masks
    assert pasted.any() and not (under & pasted).any() and (under | pasted).all()
    inner = np.zeros_like(pasted)
    inner[2:-2, 2:-2] = pasted[2:-2, 2:-2] & pasted[4:, 2:-2] & pasted[:-4, 2:-2] & pasted[2:-2, 4:] & pasted[2:-2, :-4]
    assert (scene.pixels[inner] > 240).all()
    assert (scene.pixels[~pasted] == 100).mean() > 0.9  # but for the soft edge


def test_hidden_instances_are_dropped() -> None:
    mask = np.zeros((1, 60, 80), bool)
    mask[0, 28:34, 37:45] = True
    big = Cutout(photo(300, 300, 9), np.ones((300, 300), bool))
    scene = compose(np.random.default_rng(0), Scene(photo(), mask), [big])
    assert len(scene.masks) == 1 and scene.masks[0].all()


def test_cut_and_crop_keep_pixels_and_masks_together() -> None:
    rng = np.random.default_rng(1)
    pixels, mask = photo(value=20), np.zeros((60, 80), bool)
    mask[10:40, 20:70] = True
    pixels[mask] = 220
    cutout = cut_instance(pixels, mask)
    assert cutout.mask.shape == (30, 50) and (cutout.pixels == 220).all()
    varied = vary_cutout(rng, cutout, 25)
    assert max(varied.mask.shape) == 25 and varied.mask.all()
    crop = cut_window(rng, Scene(pixels, mask[None]), 120)
    inside, outside = crop.pixels[crop.masks[0]], crop.pixels[~crop.masks[0]]
    assert max(crop.pixels.shape[:2]) == 120
    assert np.median(inside) > np.median(outside) + 60


def test_the_splits_share_no_photograph() -> None:
    assert not set(TRAIN_PHOTOGRAPHS) & set(HELD_OUT_PHOTOGRAPHS)
    for image in load_photographs(HELD_OUT_PHOTOGRAPHS):
        assert image.dtype == np.uint8 and image.ndim == 3 and min(image.shape[:2]) >= 200


def test_a_photo_without_instances() -> None:
    assert without_instances(photo()).masks.shape == (0, 60, 80)
