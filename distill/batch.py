"""The batch of photographs that a training stage receives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ImageBatch:
    """B photos and what is known about them.

    C and E are the width and the grid of the teacher's embedding; S is the student's image size, T the teacher's.

    keys: B sample keys.
    pixels: (B, 3, S, S) normalised, zero-padded.
    original_hw: (B, 2) long, height and width of each photo.
    valid: (B, E, E) bool, the cells that the photo covers.
    teacher_embeddings: (B, C, E, E) float32, from a cache, which stores the padding as means.
    teacher_pixels: (B, 3, T, T) normalised, for an online teacher.
    masks: (N, 4E, 4E) share of each low-res cell that an instance covers, in [0, 1].
    mask_image_index: (N,) long, the photo of each instance.
    boxes_xyxy: (N, 4) boxes of the instances, in the prompt frame.
    mask_counts: how many of the N instances each photo has. None: they are counted from mask_image_index.

    Instances are in the order of their photos.
    """

    keys: list[str]
    pixels: Tensor
    original_hw: Tensor
    valid: Tensor
    teacher_embeddings: Tensor | None = None
    teacher_pixels: Tensor | None = None
    masks: Tensor | None = None
    mask_image_index: Tensor | None = None
    boxes_xyxy: Tensor | None = None
    mask_counts: list[int] | None = None

    def instance_counts(self) -> list[int]:
        """Return how many instances each photo has. Without `mask_counts` the host waits for the device."""
        if self.mask_counts is None and self.mask_image_index is not None:
            counts: list[int] = self.mask_image_index.bincount(minlength=len(self.keys)).tolist()
            return counts
        return self.mask_counts or [0] * len(self.keys)
