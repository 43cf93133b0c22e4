"""What a stage receives: one batch of photographs with what is known about them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ImageBatch:
    """B photos; C, E are the teacher's embedding width and grid, S the student's image size, T the teacher's.

    keys: B sample keys.
    pixels: (B, 3, S, S) normalised, zero-padded.
    original_hw: (B, 2) long, height and width of each photo.
    valid: (B, E, E) bool, the cells that the photo covers.
    teacher_embeddings: (B, C, E, E) float32, zero in the padding; from a cache.
    teacher_pixels: (B, 3, T, T) normalised; for an online teacher.
    masks: (N, 4E, 4E) share of each low-res cell that an instance covers, in [0, 1].
    mask_image_index: (N,) long, the photo of each instance.
    boxes_xyxy: (N, 4) boxes of the instances, prompt frame.
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
