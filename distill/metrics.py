"""What is measured: IoU by the size of the object, and the agreement of embeddings.

torchmetrics accumulates the sums and merges them over ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from distill.losses.feature import cosine_map, resize_to_grid

# COCO's areas in original pixels: pycocotools/cocoeval.py, Params.setDetParams
SMALL_AREA = 32**2  # below: small
LARGE_AREA = 96**2  # from here on: large


def mask_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of bool masks (..., H, W) -> (...); two empty masks give 0."""
    intersection = (predicted & truth).sum((-2, -1))
    union = (predicted | truth).sum((-2, -1))
    return intersection / union.clamp(min=1)


class MaskIoU(Metric):
    """Mean IoU over instances: all, large, medium and small ones.

    `compute` gives `miou`, `miou_large`, `miou_medium`, `miou_small` in 0..1, NaN for a group without an instance,
    and `num_instances`.
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(4), dist_reduce_fx="sum")  # all, large, medium, small
        self.add_state("counts", torch.zeros(4), dist_reduce_fx="sum")

    def update(self, iou: Tensor, areas: Tensor) -> None:
        """Add N instances.

        Args:
            iou: (N,) in 0..1, see `mask_iou`. areas: (N,) in original pixels.
        """
        iou, areas = iou.to(self.sums), areas.to(self.sums.device)
        large, small = areas >= LARGE_AREA, areas < SMALL_AREA
        groups = torch.stack([torch.ones_like(large), large, ~large & ~small, small]).to(iou)  # (4, N)
        self.sums += groups @ iou
        self.counts += groups.sum(1)

    def compute(self) -> dict[str, Tensor]:
        means = self.sums / self.counts  # 0 / 0 is NaN
        names = ("miou", "miou_large", "miou_medium", "miou_small")
        return {**dict(zip(names, means, strict=True)), "num_instances": self.counts[0].long()}


class EmbeddingCosine(Metric):
    """Mean over images of the mean cosine similarity of an image's valid positions; NaN without an image."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_images", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor, valid: Tensor) -> None:
        """Add B images.

        Args:
            student: (B, C, e, e), resized to the teacher's grid. teacher: (B, C, E, E). valid: (B, E, E) bool.
        """
        cosine = cosine_map(resize_to_grid(student.float(), teacher.shape[-1]), teacher)  # (B, E, E)
        counts = valid.flatten(1).sum(1)  # (B,)
        sums = cosine.masked_fill(~valid, 0.0).flatten(1).sum(1)  # (B,)
        seen = counts > 0
        self.total += (sums[seen] / counts[seen]).sum()
        self.num_images += seen.sum()

    def compute(self) -> Tensor:
        return self.total / self.num_images
