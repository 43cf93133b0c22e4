"""The targets that the teacher gives for a batch: embeddings, cached or computed now, and instances."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.batch import ImageBatch
from distill.geometry import valid_masks
from distill.models.multimask import answer
from distill.models.sam import LOW_RES_PER_CELL
from distill.models.teacher import Teacher
from distill.prompts.sampling import Instances, cell_points, draw_cells
from distill.prompts.types import POSITIVE, Prompts


def teacher_embeddings(batch: ImageBatch, teacher: Teacher | None) -> Tensor | None:
    """Return the teacher's embeddings (B, C, E, E): the batch's cached ones, or computed from its `teacher_pixels`.

    Return None if the batch has neither, or there is no teacher to compute them.
    """
    if batch.teacher_embeddings is not None:
        return batch.teacher_embeddings
    if teacher is None or batch.teacher_pixels is None:
        return None
    return teacher.embed(batch.teacher_pixels)


@torch.no_grad()
def teacher_instances(teacher: Teacher, embeddings: Tensor, original_hw: Tensor, noise: Tensor) -> Instances:
    """Return instances of photos without masks: the teacher's masks at points drawn uniformly in the photos.

    Args:
        embeddings: (B, C, E, E), the teacher's. original_hw: (B, 2).
        noise: (B n, 3) uniform in [0, 1), for n points in each photo.
    Returns:
        B n instances. Each is the best of the teacher's three masks by predicted IoU, with the box of that mask.
    """
    size = LOW_RES_PER_CELL * teacher.embedding_size
    image_index = torch.arange(len(embeddings), device=noise.device)
    image_index = image_index.repeat_interleave(len(noise) // len(embeddings))  # (B n,)
    valid = valid_masks(original_hw, size).index_select(0, image_index)  # (B n, 4E, 4E)
    cells = draw_cells(valid, noise[:, :1])  # (B n, 1)
    points = cell_points(cells, noise[:, None, 1:], size=size, prompt_size=teacher.prompt_size)
    labels = torch.full(points.shape[:2], POSITIVE, device=points.device)
    logits, _ = answer(teacher, embeddings, Prompts(image_index, points_xy=points, point_labels=labels), policy="best")
    masks = (logits > 0) & valid
    return Instances(masks.float(), valid, image_index, mask_boxes(masks) * (teacher.prompt_size / size))


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes (N, 4), XYXY in cells, of masks bool (N, h, w). The box of an empty mask is the complete map."""
    sides = []
    for occupied in (masks.any(1), masks.any(2)):  # columns (N, w), rows (N, h)
        first = occupied.int().argmax(1)
        end = occupied.shape[1] - occupied.flip(1).int().argmax(1)
        sides.append(torch.stack([first, end], 1))
    return torch.stack(sides, 2).flatten(1).float()  # (N, 2, 2): first X, first Y; end X, end Y
