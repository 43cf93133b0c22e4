"""How a predictor moves photos and prompts to its model's frames, under the names of segment-anything's transform."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.geometry import HW, masks_to_original, points_to_prompt_frame, resize_longest_side, resized_hw


class PhotoTransform:
    """The methods of segment-anything's ResizeLongestSide, for models whose two frames may differ.

    Photos go to the input frame, and coordinates to the prompt frame. For SAM both have a longest side of 1024.

    Args:
        target_length: longest side of a photo in the input frame, S.
        prompt_length: longest side of a photo in the prompt frame, 16 E.
    """

    def __init__(self, target_length: int, prompt_length: int) -> None:
        self.target_length, self.prompt_length = target_length, prompt_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Resize a photo, uint8 (H, W, 3), so that its longest side is `target_length`."""
        return resize_longest_side(image, self.target_length)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Resize photos, float (B, 3, H, W), as `apply_image` does, but for the rounding to whole numbers.

        segment-anything reads the size from the first two axes, the batch and the colours. Here it is H and W.
        """
        size = resized_hw((image.shape[-2], image.shape[-1]), self.target_length)
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords(self, coords: np.ndarray, original_size: HW) -> np.ndarray:
        """Move points (..., 2), XY in original pixels, to the prompt frame, as float64."""
        return points_to_prompt_frame(np.asarray(coords, np.float64), original_size, self.prompt_length)

    def apply_boxes(self, boxes: np.ndarray, original_size: HW) -> np.ndarray:
        """Move boxes, XYXY in original pixels, (4,) or (N, 4), to the prompt frame: float64 (N, 4)."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: HW) -> Tensor:
        """Move points (..., 2), XY in original pixels, to the prompt frame, as float32."""
        return points_to_prompt_frame(coords.to(torch.float32), original_size, self.prompt_length)

    def apply_boxes_torch(self, boxes: Tensor, original_size: HW) -> Tensor:
        """Move boxes, XYXY in original pixels, (4,) or (N, 4), to the prompt frame: float32 (N, 4)."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> HW:
        """Return height and width of a photo once its longest side is `long_side_length`."""
        return resized_hw((oldh, oldw), long_side_length)


def masks_from_input(masks: Tensor, input_size: HW, original_size: HW, *, image_size: int, prompt_size: int) -> Tensor:
    """Resize logits (P, K, 4E, 4E) to the photo's own resolution (P, K, H, W).

    Args:
        input_size: height and width of the photo in the input frame, without padding.
        original_size: height and width in original pixels.
        image_size, prompt_size: the sides of the model's two frames.
    """
    if input_size == resized_hw(original_size, image_size):
        inside = resized_hw(original_size, prompt_size)
    else:  # a caller's own way of resizing
        height, width = (side * prompt_size / image_size for side in input_size)
        inside = (max(1, round(height)), max(1, round(width)))
    return masks_to_original(masks, original_size, prompt_size, inside_hw=inside)
