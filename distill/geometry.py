"""Frames and the letterbox: how a photograph becomes an encoder's input, and how masks come back.

Frames: *original* pixels of the photo; *input* pixels (longest side = S, the encoder's image size);
*prompt* frame (longest side = 16 E); *low-res mask* (4 E x 4 E). All frames share the top left corner.
The photo fills the square from there, and the rest is padding. Coordinates are continuous: (0, 0) is the outer corner
of the first pixel, as in segment-anything.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# ImageNet statistics on the 0-255 scale, RGB: segment_anything/build_sam.py
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

HW = tuple[int, int]
Coordinates = TypeVar("Coordinates", np.ndarray, Tensor)


def resized_hw(original_hw: HW, long_side: int) -> HW:
    """Return height and width once the longest side is `long_side`, rounded half up as segment-anything does.

    A side that would vanish is one pixel; segment-anything fails there.
    """
    height, width = original_hw
    scale = long_side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest_side(image: np.ndarray, long_side: int) -> np.ndarray:
    """Resize a photo so that its longest side is `long_side`: PIL bilinear with antialiasing.

    Args:
        image: uint8 (H, W, 3) RGB.
    Returns:
        uint8 (h, w, 3) RGB, equal to segment_anything.utils.transforms.ResizeLongestSide.apply_image.
    """
    height, width = resized_hw(image.shape[:2], long_side)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalize_pad(resized: np.ndarray, image_size: int) -> Tensor:
    """Normalise a resized photo, then pad it with zeros at the right and the bottom.

    Args:
        resized: uint8 (h, w, 3) RGB, h and w at most `image_size`.
    Returns:
        float32 (3, S, S), equal to segment_anything's Sam.preprocess.
    """
    writable = np.array(resized)  # a copy: PIL's arrays are read-only
    return normalize_pad_torch(torch.from_numpy(writable).permute(2, 0, 1), image_size)  # (3, S, S)


def normalize_pad_torch(pixels: Tensor, image_size: int) -> Tensor:
    """Normalise and pad as `normalize_pad` does: (..., 3, h, w), 0 to 255, to float32 (..., 3, S, S)."""
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=pixels.device).view(3, 1, 1)
    height, width = pixels.shape[-2:]
    return F.pad((pixels.float() - mean) / std, (0, image_size - width, 0, image_size - height))


def letterbox(image: np.ndarray, image_size: int) -> Tensor:
    """Turn a photo, uint8 (H, W, 3) RGB, into an encoder's input: float32 (3, S, S), normalised and zero-padded."""
    return normalize_pad(resize_longest_side(image, image_size), image_size)


def valid_grid_hw(original_hw: HW, grid: int) -> HW:
    """Return the rows and columns of a (grid, grid) map that the photo touches: the top left block is worth storing."""
    longest = max(original_hw)
    rows, cols = (math.ceil(side * grid / longest - 1e-9) for side in original_hw)
    return min(rows, grid), min(cols, grid)


def valid_masks(original_hw: Tensor, grid: int) -> Tensor:
    """Return the valid region of (grid, grid) maps: True where a cell's centre lies on the photo.

    The region is never empty: if a photo is thinner than half a cell, its first row or column is valid.

    Args:
        original_hw: (B, 2) height and width of each photo.
    Returns:
        bool (B, grid, grid).
    """
    centres = torch.arange(grid, device=original_hw.device) + 0.5
    share = original_hw / original_hw.amax(1, keepdim=True)  # (B, 2)
    inside = centres < (share[:, :, None] * grid).clamp(min=1)  # (B, 2, grid)
    return inside[:, 0, :, None] & inside[:, 1, None, :]  # (B, grid, grid)


def valid_mask(original_hw: HW, grid: int) -> Tensor:
    """Return the valid region of one photo's map, as `valid_masks` does: bool (grid, grid)."""
    return valid_masks(torch.tensor([original_hw]), grid)[0]


def _scale_xy(original_hw: HW, prompt_size: int) -> tuple[float, float]:
    height, width = resized_hw(original_hw, prompt_size)
    return width / original_hw[1], height / original_hw[0]


def points_to_prompt_frame(points_xy: Coordinates, original_hw: HW, prompt_size: int) -> Coordinates:
    """Move points (..., 2), XY, from original pixels to the prompt frame of side `prompt_size` (16 E; 1024 for SAM)."""
    scale = _scale_xy(original_hw, prompt_size)
    if isinstance(points_xy, torch.Tensor):
        return points_xy * torch.tensor(scale, dtype=points_xy.dtype, device=points_xy.device)
    moved: np.ndarray = points_xy * np.asarray(scale)
    return moved


def boxes_to_prompt_frame(boxes_xyxy: Coordinates, original_hw: HW, prompt_size: int) -> Coordinates:
    """Move boxes (..., 4), XYXY, from original pixels to the prompt frame of side `prompt_size`."""
    corners = boxes_xyxy.reshape(*boxes_xyxy.shape[:-1], 2, 2)
    return points_to_prompt_frame(corners, original_hw, prompt_size).reshape(boxes_xyxy.shape)


def masks_to_original(
    low_res_logits: Tensor, original_hw: HW, prompt_size: int, *, inside_hw: HW | None = None
) -> Tensor:
    """Resize logits (P, K, 4E, 4E) to the photo's own resolution (P, K, H, W).

    As in segment_anything's Sam.postprocess_masks, they are resized to the prompt frame, the padding is cut off, and
    the rest is resized to the original size; both times bilinearly, with align_corners=False.

    Args:
        inside_hw: height and width of the photo in the prompt frame, if they are not those of `resized_hw`.
    """
    height, width = resized_hw(original_hw, prompt_size) if inside_hw is None else inside_hw
    size = (prompt_size, prompt_size)
    logits = F.interpolate(low_res_logits, size, mode="bilinear", align_corners=False)  # (P, K, 16E, 16E)
    logits = logits[..., :height, :width]
    return F.interpolate(logits, original_hw, mode="bilinear", align_corners=False)  # (P, K, H, W)


def mask_window(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Return the rows and columns of the smallest window that holds a mask (H, W), or None if it has no pixel."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def cell_starts(num_pixels: int, num_cells: int) -> np.ndarray:
    """Return the first pixel of each cell along one side of a photo, int64 (num_cells,).

    A cell holds the pixels whose centres lie in it, up to the first pixel of the next cell. Where the photo is
    enlarged, a cell holds its nearest pixel. Pillow's box filter has the same cells, but loses some of the pixels
    whose centres lie between two of them.
    """
    scale = num_pixels / num_cells
    cells = np.arange(num_cells)
    return (cells * scale + 0.5 if scale >= 1 else (cells + 0.5) * scale).astype(np.int64)


def mask_to_low_res(mask: np.ndarray, low_res_size: int) -> np.ndarray:
    """Return the share of each low-res cell that a mask covers. `distill.data.rle.coverage` does so for an RLE.

    Args:
        mask: bool or uint8 0/1 (H, W) in original pixels.
    Returns:
        float32 (4E, 4E) in [0, 1]; padding is 0.
    """
    height, width = resized_hw(mask.shape, low_res_size)
    shares: np.ndarray = mask.astype(np.float32)
    for axis, num_cells in enumerate((height, width)):
        starts = cell_starts(mask.shape[axis], num_cells)
        num_pixels = np.diff(starts, append=mask.shape[axis]).clip(min=1).astype(np.float32)
        shares = np.add.reduceat(shares, starts, axis) / np.expand_dims(num_pixels, 1 - axis)
    low_res = np.zeros((low_res_size, low_res_size), np.float32)
    low_res[:height, :width] = shares
    return low_res


def mask_iou(masks: Tensor, others: Tensor, *, both_empty: float = 0.0) -> Tensor:
    """Return the IoU of pairs of bool masks, (..., H, W) -> (...).

    Args:
        both_empty: the IoU of two empty masks, which is not defined.
    """
    union = (masks | others).sum((-2, -1))
    iou = (masks & others).sum((-2, -1)) / union.clamp(min=1)
    return torch.where(union > 0, iou, both_empty)


def grid_points(original_hw: HW, points_per_side: int) -> np.ndarray:
    """Return the centres of n x n equal parts of a photo: float64 (n * n, 2) XY in its pixels, row by row."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres * original_hw[1], centres * original_hw[0])
    return np.stack([x.ravel(), y.ravel()], -1)
