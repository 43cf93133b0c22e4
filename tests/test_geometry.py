"""The letterbox and the frames, against segment_anything to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from distill.geometry import (
    boxes_to_prompt_frame,
    cell_starts,
    grid_points,
    letterbox,
    mask_iou,
    mask_to_low_res,
    masks_to_original,
    points_to_prompt_frame,
    resize_longest_side,
    resized_hw,
    valid_grid_hw,
    valid_mask,
    valid_masks,
)

SIZES = [(427, 640), (640, 427), (1, 1), (2, 131), (131, 2), (512, 512), (57, 91), (1023, 1025), (300, 1024), (97, 64)]
SIZES += [tuple(int(side) for side in np.random.RandomState(0).randint(2, 900, 2)) for _ in range(10)]

THIN = [(1, 2000), (2000, 1)]  # segment_anything fails: a side is resized to nothing


def sam_of(image_size: int) -> Sam:
    """segment_anything's own pre- and postprocessing for an encoder of that size."""
    encoder = nn.Module()
    encoder.img_size = image_size
    means = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}  # build_sam.py
    return Sam(encoder, nn.Module(), nn.Module(), **means)


def random_photo(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(height * 1000 + width).randint(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("image_size", [64, 333, 512, 1024])
@pytest.mark.parametrize("original_hw", SIZES)
def test_letterbox_is_segment_anythings(original_hw: tuple[int, int], image_size: int):
    photo = random_photo(*original_hw)
    resized = ResizeLongestSide(image_size).apply_image(photo)
    np.testing.assert_array_equal(resize_longest_side(photo, image_size), resized)
    expected = sam_of(image_size).preprocess(torch.as_tensor(resized).permute(2, 0, 1))
    actual = letterbox(photo, image_size)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("original_hw", THIN)
def test_a_thin_photo_keeps_a_pixel(original_hw: tuple[int, int]):
    assert sorted(resized_hw(original_hw, 64)) == [1, 64]
    pixels = letterbox(random_photo(*original_hw), 64)
    assert int((pixels != 0).any(0).sum()) == 64
    assert masks_to_original(torch.randn(1, 1, 16, 16), original_hw, 64).shape == (1, 1, *original_hw)
    assert mask_to_low_res(np.ones(original_hw, bool), 16).sum() == 16


@pytest.mark.parametrize("prompt_size", [128, 1024])
@pytest.mark.parametrize("original_hw", SIZES)
def test_prompts_are_moved_as_by_segment_anything(original_hw: tuple[int, int], prompt_size: int):
    transform = ResizeLongestSide(prompt_size)
    height, width = original_hw
    points = np.random.RandomState(1).rand(5, 2) * (width, height)
    boxes = np.random.RandomState(2).rand(4, 4) * (width, height, width, height)
    np.testing.assert_array_equal(
        points_to_prompt_frame(points, original_hw, prompt_size), transform.apply_coords(points, original_hw)
    )
    np.testing.assert_array_equal(
        boxes_to_prompt_frame(boxes, original_hw, prompt_size), transform.apply_boxes(boxes, original_hw)
    )


def test_prompts_as_tensors_and_integers():
    points = torch.tensor([[[10.0, 20.0]], [[30.0, 5.0]]])
    moved = points_to_prompt_frame(points, (427, 640), 1024)
    assert moved.shape == points.shape and moved.dtype == torch.float32
    np.testing.assert_allclose(moved.numpy(), points_to_prompt_frame(points.numpy(), (427, 640), 1024), rtol=1e-6)
    boxes = np.array([[1, 2, 3, 4]])
    np.testing.assert_array_equal(boxes_to_prompt_frame(boxes, (50, 100), 200), 2 * boxes)
    assert boxes_to_prompt_frame(np.zeros(4), (50, 100), 200).shape == (4,)
    assert boxes_to_prompt_frame(torch.zeros(0, 4), (50, 100), 200).shape == (0, 4)


@pytest.mark.parametrize("original_hw", [(427, 640), (640, 427), (57, 91), (1, 40), (301, 300)])
@pytest.mark.parametrize("grid", [4, 8])
def test_masks_come_back_as_from_segment_anything(original_hw: tuple[int, int], grid: int):
    logits = torch.randn(2, 3, 4 * grid, 4 * grid)
    prompt_size = 16 * grid
    input_size = ResizeLongestSide.get_preprocess_shape(*original_hw, prompt_size)
    expected = sam_of(prompt_size).postprocess_masks(logits, input_size, original_hw)
    assert torch.equal(masks_to_original(logits, original_hw, prompt_size), expected)


@pytest.mark.parametrize("grid", [7, 16, 64])
@pytest.mark.parametrize("original_hw", [*SIZES, *THIN])
def test_valid_region(original_hw: tuple[int, int], grid: int):
    rows, cols = valid_grid_hw(original_hw, grid)
    valid = valid_mask(original_hw, grid)
    assert valid.shape == (grid, grid) and valid.dtype == torch.bool
    assert max(rows, cols) == grid and min(rows, cols) >= 1  # the longest side fills the square
    assert not valid[rows:].any() and not valid[:, cols:].any()  # inside the block that is stored
    num_rows, num_cols = int(valid.any(1).sum()), int(valid.any(0).sum())
    assert int(valid.sum()) == num_rows * num_cols  # a rectangle ...
    assert valid[:num_rows, :num_cols].all()  # ... at the top left
    assert num_rows >= 1 and num_cols >= 1  # never empty: losses divide by it
    assert 0 <= rows - num_rows <= 1 and 0 <= cols - num_cols <= 1  # all but a cell covered by less than half
    assert torch.equal(valid_mask(original_hw[::-1], grid), valid.T)


def test_valid_regions_of_a_batch():
    sizes = [*SIZES, *THIN]
    expected = torch.stack([valid_mask(original_hw, 16) for original_hw in sizes])
    assert torch.equal(valid_masks(torch.tensor(sizes), 16), expected)


def test_valid_region_by_hand():
    assert valid_grid_hw((3, 4), 8) == (6, 8)
    assert valid_grid_hw((301, 400), 8) == (7, 8)
    assert int(valid_mask((301, 400), 8).any(1).sum()) == 6  # the seventh row is covered by 2 %
    assert valid_mask((5, 5), 8).all()


@pytest.mark.parametrize("original_hw", [(64, 64), (427, 640), (640, 427), (31, 17)])
def test_low_res_coverage_keeps_the_area(original_hw: tuple[int, int]):
    height, width = original_hw
    y, x = np.mgrid[:height, :width]
    mask = ((y - height / 2) / height) ** 2 + ((x - width / 3) / width) ** 2 < 0.06
    low_res = mask_to_low_res(mask, 64)
    assert low_res.shape == (64, 64) and low_res.dtype == np.float32
    assert low_res.min() >= 0 and low_res.max() <= 1
    rows, cols = resized_hw(original_hw, 64)
    assert not low_res[rows:].any() and not low_res[:, cols:].any()
    assert low_res.sum() / (rows * cols) == pytest.approx(mask.mean(), rel=0.01)
    np.testing.assert_array_equal(mask_to_low_res(mask.astype(np.uint8), 64), low_res)


def test_low_res_mask_lies_where_the_object_is():
    mask = np.zeros((100, 200), bool)
    mask[50:, 100:] = True  # the photo's lower right quarter; the photo covers the square's upper half
    low_res = mask_to_low_res(mask, 32)
    expected = np.zeros((32, 32), np.float32)
    expected[8:16, 16:] = 1
    np.testing.assert_allclose(low_res, expected, atol=1 / 255)


@pytest.mark.parametrize("num_pixels", [1, 7, 64, 263, 1500, 2000])
def test_cells_share_out_every_pixel(num_pixels: int):
    for num_cells in (1, 5, 64):
        starts = cell_starts(num_pixels, num_cells)
        assert starts[0] == 0 and starts[-1] < num_pixels and (np.diff(starts) >= 0).all()
        if num_cells > num_pixels:
            assert set(starts) == set(range(num_pixels))
            continue
        centres = np.arange(num_pixels) + 0.5
        cells = np.searchsorted(starts, np.arange(num_pixels), side="right") - 1
        assert (np.abs(centres - (cells + 0.5) * num_pixels / num_cells) <= num_pixels / num_cells / 2 + 1e-9).all()


def test_low_res_masks_are_pillows_box_filter():
    mask = random_photo(300, 400)[..., 0] > 128
    pillow = Image.fromarray(mask.astype(np.float32)).resize((128, 96), Image.Resampling.BOX)
    np.testing.assert_allclose(mask_to_low_res(mask, 128)[:96], np.asarray(pillow), atol=1e-6)


def test_mask_iou_by_hand():
    predicted = torch.tensor([[[1, 1], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]).bool()
    truth = torch.tensor([[[1, 0], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]).bool()
    assert mask_iou(predicted, truth).tolist() == pytest.approx([1 / 3, 1, 0])
    assert mask_iou(predicted, truth, both_empty=1.0).tolist() == pytest.approx([1 / 3, 1, 1])


def test_grid_points_lie_at_the_centres_of_equal_parts() -> None:
    assert grid_points((60, 80), 2).tolist() == [[20, 15], [60, 15], [20, 45], [60, 45]]
