"""The loss of mask quality from storing embeddings: by their values, and by several forms of their padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.cache.codecs import quantize
from distill.data.cache.fidelity import low_res_masks, point_grid
from distill.data.cache.padding import restore_padding, summarize_padding
from distill.geometry import HW, letterbox, mask_iou, valid_grid_hw
from distill.models.teacher import Teacher

MASK_PHOTOS = 4
POINTS_PER_SIDE = 4  # prompts a photo: clicks on a grid
SHORT, LONG = 2, 3  # sides of the photos, so that embeddings have padding; SA-1B's are 3:2 at most


class ReferenceMasks:
    """The masks that a teacher decodes from its own embeddings, with which masks from stored ones are compared.

    Args:
        embeddings: the teacher's own, (C, E, E) each.
        original_hw: height and width of each photo. The default is squares.
    """

    def __init__(self, teacher: Teacher, embeddings: list[Tensor], original_hw: list[HW] | None = None) -> None:
        self.teacher = teacher
        self.original_hw = original_hw or [(1, 1)] * len(embeddings)
        self.expected = [self._masks(*pair) for pair in zip(embeddings, self.original_hw, strict=True)]

    def ious(self, decoded: list[Tensor]) -> list[float]:
        """Return the mean IoU on each photo. `decoded` may hold more embeddings; the first ones are used."""
        masks = [self._masks(item, hw) for item, hw in zip(decoded, self.original_hw, strict=False)]
        return [float(mask_iou(*pair, both_empty=1.0).mean()) for pair in zip(masks, self.expected, strict=True)]

    def mean_iou(self, decoded: list[Tensor]) -> float:
        """Return the mean IoU over all prompts. Every photo has the same number."""
        return float(np.mean(self.ious(decoded)))

    def _masks(self, embedding: Tensor, original_hw: HW) -> Tensor:
        prompts = point_grid(original_hw, self.teacher.prompt_size, POINTS_PER_SIDE)
        return low_res_masks(self.teacher, embedding, prompts, original_hw)


@dataclass(frozen=True)
class Form:
    """A form of padding (C, R, E), which is lines along the photo's edge.

    `restore` returns the padding as it is restored, and how many values a channel are stored for it.
    """

    name: str
    restore: Callable[[Tensor], tuple[Tensor, int]]


def forms() -> list[Form]:
    """Return the forms, from storing nothing to storing everything."""
    return [
        Form("nothing", lambda lines: (torch.zeros_like(lines), 0)),
        Form("one mean vector", lambda lines: (lines.mean((1, 2), keepdim=True).expand_as(lines), 1)),
        Form("a mean for each line", lambda lines: (lines.mean(2, keepdim=True).expand_as(lines), lines.shape[1])),
        Form("lines, and coarse means across them (ours)", _ours),
        Form("lines, and all means across them", _lines_and_columns),
        Form("all, in int8", _int8),
    ]


def measure_padding(teacher: Teacher, photos: list[np.ndarray]) -> list[dict[str, Any]]:
    """Measure the mask IoU by the form of the padding, on photos cut to 3:2 whose own block is exact.

    Returns:
        a row for each form: name, share (of the bytes of the block), mask_iou, and worst (mask IoU of a photo).
    """
    photos = [_cut(photo) for photo in photos]
    hws = [photo.shape[:2] for photo in photos]
    embeddings = [teacher.embed(letterbox(photo, teacher.image_size)[None])[0] for photo in photos]  # (C, E, E)
    reference = ReferenceMasks(teacher, embeddings, hws)
    rows = []
    for form in forms():
        decoded, shares = [], []
        for embedding, hw in zip(embeddings, hws, strict=True):
            num_rows, num_cols = valid_grid_hw(hw, teacher.embedding_size)
            restored = embedding.clone()
            restored[:, num_rows:], num_values = form.restore(embedding[:, num_rows:])
            decoded.append(restored)
            shares.append(num_values / (num_rows * num_cols))
        ious = reference.ious(decoded)
        found = {"share": float(np.mean(shares)), "mask_iou": float(np.mean(ious)), "worst": min(ious)}
        rows.append({"name": form.name, **found})
    return rows


def _cut(photo: np.ndarray) -> np.ndarray:
    """Cut the largest landscape of 3:2 from the middle of a photo."""
    width = min(photo.shape[1], photo.shape[0] * LONG // SHORT)
    height = width * SHORT // LONG
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def _ours(lines: Tensor) -> tuple[Tensor, int]:
    whole = torch.cat([lines.new_zeros(lines.shape[0], lines.shape[2] - lines.shape[1], lines.shape[2]), lines], 1)
    valid_hw = (lines.shape[2] - lines.shape[1], lines.shape[2])
    summary = summarize_padding(whole, valid_hw)
    restore_padding(whole, summary, valid_hw)
    return whole[:, valid_hw[0] :], summary.shape[1]


def _lines_and_columns(lines: Tensor) -> tuple[Tensor, int]:
    along, across = lines.mean(2, keepdim=True), lines.mean(1, keepdim=True)
    return along + across - lines.mean((1, 2), keepdim=True), lines.shape[1] + lines.shape[2]


def _int8(lines: Tensor) -> tuple[Tensor, int]:
    flat = lines.flatten(1)
    stored = quantize(flat, flat.shape[1])
    return (stored["values"] * stored["scale"] + stored["offset"]).view_as(lines), flat.shape[1]
