"""Losses between a student's and a teacher's embedding, on the valid region only, in float32.

Each loss is a mean over the valid positions of an image, then over the images. So a photo counts the same, whatever its
shape. A published training code divides a (B,) sum by a (B, 1) count, which couples the images of a batch; here
numerators and denominators are both (B,). Means over channels keep the scale independent of C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config.schema import FeatureLossConfig

HUBER_DELTA = 1.0  # NanoSAM, published training code: torch's default
RELATION_MAX_GRID = 32  # a relation of a 64 x 64 grid takes every second row and column: 1024^2 pairs, not 4096^2


def masked_mse(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error over valid positions and channels.

    Args:
        student, teacher: (B, C, E, E).
        valid: (B, E, E) bool.
    Returns:
        Scalar: the mean over images of each image's mean. An image without a valid position counts as 0.
    """
    return _image_mean(_difference(student, teacher, valid).square().mean(1), valid)


def masked_huber(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the Huber loss over valid positions and channels; shapes as in `masked_mse`."""
    difference = _difference(student, teacher, valid)  # (B, C, E, E)
    loss = F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=HUBER_DELTA)
    return _image_mean(loss.mean(1), valid)


def masked_cosine(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - cosine similarity over the channels, a mean over valid positions; shapes as in `masked_mse`."""
    return _image_mean(1 - cosine_map(student, teacher), valid)


def cosine_map(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cosine similarity of each position: (B, C, E, E) twice -> (B, E, E) in float32."""
    return F.cosine_similarity(student.float(), teacher.float(), dim=1)


def relation(student: Tensor, teacher: Tensor, valid: Tensor, *, stride: int | None = None) -> Tensor:
    """Compare how the positions of an image attend to each other: KL(teacher || student) of softmaxed dot products.

    This is the value relation of MiniLM (arXiv:2002.10957, section 3.2): softmax(V V^T / sqrt(C)), over valid
    positions.

    Args:
        student, teacher: (B, C, E, E).
        valid: (B, E, E) bool.
        stride: every stride-th row and column takes part. None chooses it so that at most 32 x 32 positions take part.
    Returns:
        Scalar: the mean over images of each image's mean over its valid positions.
    """
    if stride is None:
        stride = -(-valid.shape[-1] // RELATION_MAX_GRID)
    valid = valid[:, ::stride, ::stride]
    of_student = _log_attention(student[..., ::stride, ::stride], valid)  # (B, N, N)
    of_teacher = _log_attention(teacher[..., ::stride, ::stride], valid)
    divergence = (of_teacher.exp() * (of_teacher - of_student)).sum(-1)  # (B, N)
    return _image_mean(divergence.view(valid.shape), valid)


def feature_losses(student: Tensor, teacher: Tensor, valid: Tensor, config: FeatureLossConfig) -> dict[str, Tensor]:
    """Return the named terms of weight above 0, unweighted, and `loss`, their weighted sum.

    Args:
        student: (B, C, e, e), resized here to the teacher's grid.
        teacher: (B, C, E, E).
        valid: (B, E, E) bool.
    """
    student = resize_to_grid(student.float(), teacher.shape[-1])
    teacher = teacher.float()
    weighted = {
        "mse": (config.mse, masked_mse),
        "cosine": (config.cosine, masked_cosine),
        "huber": (config.huber, masked_huber),
        "relation": (config.relation, relation),
    }
    terms = {name: loss(student, teacher, valid) for name, (weight, loss) in weighted.items() if weight}
    total = torch.stack([weighted[name][0] * value for name, value in terms.items()]).sum()
    return {"loss": total, **terms}


def resize_to_grid(embeddings: Tensor, grid: int) -> Tensor:
    """Resize embeddings (B, C, e, e) to a (grid, grid) map, bilinear, align_corners=False."""
    if embeddings.shape[-1] == grid:
        return embeddings
    return F.interpolate(embeddings, (grid, grid), mode="bilinear", align_corners=False)


def _difference(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return student - teacher in float32. It is 0 in the padding, whatever the padding holds."""
    assert student.shape == teacher.shape, f"{tuple(student.shape)} against {tuple(teacher.shape)}"
    return (student.float() - teacher.float()).masked_fill(~valid[:, None], 0.0)


def _image_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over the valid positions of each image, then over the images: (B, E, E) -> scalar."""
    sums = values.masked_fill(~valid, 0.0).flatten(1).sum(1)  # (B,)
    counts = valid.flatten(1).sum(1).clamp(min=1)  # (B,)
    return (sums / counts).mean()


def _log_attention(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Return the log of each position's attention to the valid ones: (B, C, e, e) -> (B, N, N), N = e e."""
    positions = embeddings.float().masked_fill(~valid[:, None], 0.0).flatten(2)  # (B, C, N)
    similarity = positions.transpose(1, 2) @ positions / positions.shape[1] ** 0.5  # (B, N, N)
    lowest = torch.finfo(similarity.dtype).min  # not -inf: 0 * (lowest - lowest) is 0, with -inf it would be NaN
    attended: Tensor = similarity.masked_fill(~valid.flatten(1)[:, None], lowest)  # (B, N, N)
    return attended.log_softmax(-1)
