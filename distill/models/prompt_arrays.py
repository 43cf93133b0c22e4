"""Photos and prompts as arrays: what callers give, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError
from distill.prompts.types import NEGATIVE, PAD, POSITIVE


@dataclass(frozen=True)
class PhotoPrompt:
    """N prompts of one kind on one photo, float64, in original pixels.

    points_xy, labels: (N, K, 2) and (N, K) or None. boxes_xyxy: (N, 4) or None. mask_logits: (N, 1, 4E, 4E) or None.
    """

    num: int
    points_xy: np.ndarray | None = None
    labels: np.ndarray | None = None
    boxes_xyxy: np.ndarray | None = None
    mask_logits: np.ndarray | None = None

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What decides whether prompts can be decoded together: the number of points, box or none, mask or none."""
        num_points = 0 if self.points_xy is None else self.points_xy.shape[1]
        return num_points, self.boxes_xyxy is not None, self.mask_logits is not None


def read_prompt(
    point_coords: npt.ArrayLike | None,
    point_labels: npt.ArrayLike | None,
    box: npt.ArrayLike | None,
    mask_input: npt.ArrayLike | None,
    *,
    low_res_size: int,
) -> PhotoPrompt:
    """Check the arguments of `Predictor.predict`, which names their shapes, and give each an axis for N prompts.

    Raises:
        DistillError: there is no prompt, a shape does not fit, or a number is not finite.
    """
    points = labels = boxes = masks = None
    if point_coords is not None:
        points, labels = _check_points(point_coords, point_labels)
    elif point_labels is not None:
        raise DistillError("point_labels are given without point_coords")
    if box is not None:
        boxes = _array(box, "box", (4,), (None, 4)).reshape(-1, 4)
    if mask_input is not None:
        shape = (1, low_res_size, low_res_size)
        masks = _array(mask_input, "mask_input", shape, (None, *shape)).reshape(-1, *shape)
    lengths = {
        name: len(values)
        for name, values in (("point_coords", points), ("box", boxes), ("mask_input", masks))
        if values is not None
    }
    if not lengths:
        raise DistillError("nothing to predict: give point_coords with point_labels, a box, or a mask_input")
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{num} of {name}" for name, num in lengths.items())
        raise DistillError(f"{counts} do not belong together: give one of each for every object")
    return PhotoPrompt(max(lengths.values()), points, labels, boxes, masks)


def check_image(image: Any) -> np.ndarray:
    """Return a photo if it is uint8 (H, W, 3). Raises DistillError for anything else."""
    if not isinstance(image, np.ndarray):
        raise DistillError(f"a photo is a uint8 array (H, W, 3) in RGB, not a {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DistillError(f"a photo is a uint8 array (H, W, 3) in RGB; its shape is {image.shape}")
    if image.dtype != np.uint8:
        raise DistillError(f"a photo is a uint8 array with values 0 to 255; its type is {image.dtype}")
    return image


def _check_points(point_coords: npt.ArrayLike, point_labels: npt.ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, K, 2) and labels (N, K)."""
    if point_labels is None:
        raise DistillError("point_coords are given without point_labels: 1 on the object, 0 off it")
    points = _array(point_coords, "point_coords", (None, 2), (None, None, 2))
    labels = _array(point_labels, "point_labels", points.shape[:-1])
    if not np.isin(labels, (POSITIVE, NEGATIVE, PAD)).all():
        raise DistillError(f"point_labels are {POSITIVE} on the object and {NEGATIVE} off it, not {labels.tolist()}")
    return points.reshape(-1, *points.shape[-2:]), labels.reshape(-1, labels.shape[-1])


def _array(values: npt.ArrayLike, name: str, *shapes: tuple[int | None, ...]) -> np.ndarray:
    """Convert values to a finite float64 array of one of the shapes, where None stands for any length except 0."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DistillError(f"{name} must hold numbers: {error}") from error
    if not any(_fits(array.shape, shape) for shape in shapes):
        raise DistillError(f"{name} must have the shape {' or '.join(map(_written, shapes))}, not {array.shape}")
    if not np.isfinite(array).all():
        raise DistillError(f"{name} must be finite numbers")
    return array


def _fits(have: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(have) == len(wanted) and all(
        side == want if want is not None else side > 0 for side, want in zip(have, wanted, strict=True)
    )


def _written(shape: tuple[int | None, ...]) -> str:
    sides = ", ".join("N" if side is None else str(side) for side in shape)
    return f"({sides}{',' * (len(shape) == 1)})"
