"""The teacher's embeddings of a batch: from the cache, or from the teacher itself."""

from __future__ import annotations

from torch import Tensor

from distill.batch import ImageBatch
from distill.teacher import Teacher


def teacher_embeddings(batch: ImageBatch, teacher: Teacher | None) -> Tensor | None:
    """Cached embeddings if the batch has them, else the teacher's answer to `teacher_pixels`; (B, C, E, E) or None."""
    if batch.teacher_embeddings is not None:
        return batch.teacher_embeddings
    if teacher is None or batch.teacher_pixels is None:
        return None
    return teacher.embed(batch.teacher_pixels)
