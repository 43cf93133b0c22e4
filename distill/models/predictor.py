"""A predictor for one photo at a time, used like segment_anything's SamPredictor."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.geometry import HW, boxes_to_prompt_frame, letterbox, masks_to_original, points_to_prompt_frame
from distill.models.sam import PromptableModel
from distill.prompts.types import NEGATIVE, PAD, POSITIVE, Prompts

MASK_THRESHOLD = 0.0  # segment_anything/modeling/sam.py


class Predictor:
    """A model that encodes a photo once and then answers prompts in the photo's own pixels."""

    def __init__(self, model: PromptableModel) -> None:
        self.model = model.eval()
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the photo."""
        self._embedding: Tensor | None = None
        self._original_hw: HW = (0, 0)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def set_image(self, image: np.ndarray) -> None:
        """Encode a photo.

        Args:
            image: uint8 (H, W, 3) RGB.
        Raises:
            DistillError: the array has another type or shape.
        """
        _check_image(image)
        self.reset_image()
        pixels = letterbox(image, self.model.image_size)[None].to(self.device)  # (1, 3, S, S)
        self._embedding = self.model.encode(pixels)
        height, width = image.shape[:2]
        self._original_hw = (height, width)

    @property
    def embedding(self) -> Tensor:
        """The photo's embedding (1, C, E, E). Before `set_image` it raises DistillError."""
        if self._embedding is None:
            raise DistillError("no photo is set: call set_image before predict")
        return self._embedding

    @torch.no_grad()
    def predict(
        self,
        *,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answer one prompt, which may combine points, a box and an earlier answer.

        Args:
            point_coords: (N, 2) XY in original pixels.
            point_labels: (N,), 1 on the object, 0 off it.
            box: (4,) XYXY in original pixels.
            mask_input: (1, 4E, 4E) low-res logits of an earlier answer.
            multimask_output: True for three masks, for ambiguous prompts; False for one.
        Returns:
            masks bool (K, H, W), predicted IoU float32 (K,), low-res logits float32 (K, 4E, 4E); K is 3 or 1.
        Raises:
            DistillError: there is no photo or no prompt, or the prompt has another shape.
        """
        embedding = self.embedding
        prompts = self._prompts(point_coords, point_labels, box, mask_input)
        low_res, iou_predictions = self.model.decode(embedding, prompts, multimask=multimask_output)  # (1, K, 4E, 4E)
        logits = masks_to_original(low_res, self._original_hw, self.model.prompt_size)  # (1, K, H, W)
        masks: np.ndarray = (logits[0] > MASK_THRESHOLD).cpu().numpy()
        return masks, iou_predictions[0].float().cpu().numpy(), low_res[0].float().cpu().numpy()

    def _prompts(
        self,
        point_coords: npt.ArrayLike | None,
        point_labels: npt.ArrayLike | None,
        box: npt.ArrayLike | None,
        mask_input: npt.ArrayLike | None,
    ) -> Prompts:
        prompts = Prompts(torch.zeros(1, dtype=torch.long, device=self.device))
        frame = (self._original_hw, self.model.prompt_size)
        if point_coords is not None:
            points, labels = _check_points(point_coords, point_labels)
            prompts.points_xy = self._tensor(points_to_prompt_frame(points, *frame))  # (1, N, 2)
            prompts.point_labels = self._tensor(labels)  # (1, N)
        elif point_labels is not None:
            raise DistillError("point_labels are given without point_coords")
        if box is not None:
            corners = _array(box, "box", (4,))
            prompts.boxes_xyxy = self._tensor(boxes_to_prompt_frame(corners, *frame))  # (1, 4)
        if mask_input is not None:
            side = self.model.low_res_size
            prompts.mask_logits = self._tensor(_array(mask_input, "mask_input", (1, side, side)))  # (1, 1, 4E, 4E)
        if prompts.points_xy is None and prompts.boxes_xyxy is None and prompts.mask_logits is None:
            raise DistillError("nothing to predict: give point_coords with point_labels, a box, or a mask_input")
        return prompts

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)[None]


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise DistillError(f"a photo is a uint8 array (H, W, 3) in RGB, not a {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DistillError(f"a photo is a uint8 array (H, W, 3) in RGB; its shape is {image.shape}")
    if image.dtype != np.uint8:
        raise DistillError(f"a photo is a uint8 array with values 0 to 255; its type is {image.dtype}")


def _check_points(point_coords: npt.ArrayLike, point_labels: npt.ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    if point_labels is None:
        raise DistillError("point_coords are given without point_labels: 1 on the object, 0 off it")
    points = _array(point_coords, "point_coords", (None, 2))
    labels = _array(point_labels, "point_labels", (len(points),))
    if not np.isin(labels, (POSITIVE, NEGATIVE, PAD)).all():
        raise DistillError(f"point_labels are {POSITIVE} on the object and {NEGATIVE} off it, not {labels.tolist()}")
    return points, labels


def _array(values: npt.ArrayLike, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Convert values to a finite float64 array of a shape, in which None stands for any length except 0."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DistillError(f"{name} must hold numbers: {error}") from error
    fits = len(array.shape) == len(shape) and all(
        have == want if want is not None else have > 0 for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if want is None else str(want) for want in shape)
        raise DistillError(f"{name} must have the shape ({wanted}{',' * (len(shape) == 1)}), not {array.shape}")
    if not np.isfinite(array).all():
        raise DistillError(f"{name} must be finite numbers")
    return array
