"""Everything on a photo: segment-anything's generator of masks from a grid of points, over one of our models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from segment_anything import SamAutomaticMaskGenerator

from distill.models.predictor import Predictor, Promptable
from distill.models.prompt_arrays import check_image


class AutomaticMaskGenerator(SamAutomaticMaskGenerator):  # type: ignore[misc] # segment_anything has no types
    """The generator of all masks of a photo, with every argument, attribute and method of segment-anything's.

    The model may be any of ours. It is used by one thread at a time; give each thread a generator of its own.
    `options` are the arguments of segment_anything's SamAutomaticMaskGenerator, by position or by name, with its
    defaults: points_per_side (32), points_per_batch (64), pred_iou_thresh (0.88), stability_score_thresh (0.95), and
    so on.
    """

    def __init__(self, model: Promptable, *arguments: Any, **options: Any) -> None:
        encoder = SimpleNamespace(img_size=model.image_size)
        super().__init__(SimpleNamespace(image_encoder=encoder), *arguments, **options)  # its predictor is replaced
        self.predictor = Predictor(model)

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Return the masks of a photo, uint8 (H, W, 3) RGB.

        Each is a dict: `segmentation`, a mask (H, W) or its code; `bbox`, XYWH in original pixels; `area` in pixels;
        `predicted_iou`; `point_coords`, the point that found it; `stability_score`; `crop_box`, XYWH.

        Raises:
            DistillError: the array has another type or shape.
        """
        masks: list[dict[str, Any]] = super().generate(check_image(image))
        return masks
