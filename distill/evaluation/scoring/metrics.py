"""The metrics: scores by the size of the object, calibration of the predicted IoU, and agreement of embeddings.

torchmetrics accumulates the sums and merges them over ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from distill.losses.feature import cosine_map, resize_to_grid

# COCO's areas in original pixels: pycocotools/cocoeval.py, Params.setDetParams
SMALL_AREA = 32**2  # below: small
LARGE_AREA = 96**2  # from here on: large

VARIANCE_FLOOR = 1e-12  # a smaller variance is rounding error


SIZES = ("", "_large", "_medium", "_small")  # the endings of a metric's names; the first is for all instances
SIZE_NAMES = ("large", "medium", "small")


class MeanBySize(Metric):
    """The mean of a score over instances: all, large, medium and small ones.

    `compute` returns NAME, NAME_large, NAME_medium and NAME_small, NaN for a group without an instance.

    Args:
        closed: as in `size_groups`.
        sync_on_compute: sum over all ranks; false where one rank holds all instances already.
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    counts: Tensor

    def __init__(self, name: str, *, closed: bool = False, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.name, self.closed = name, closed
        self.add_state("sums", torch.zeros(len(SIZES)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(SIZES)), dist_reduce_fx="sum")

    def update(self, scores: Tensor, areas: Tensor) -> None:
        """Add N instances.

        Args:
            scores: (N,) in 0..1. areas: (N,) in original pixels.
        """
        scores = scores.to(self.sums)
        groups = size_groups(areas.to(self.sums.device), closed=self.closed).to(scores)  # (4, N)
        self.sums += groups @ scores
        self.counts += groups.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each group."""
        means = self.sums / self.counts  # 0 / 0 is NaN
        return {self.name + size: mean for size, mean in zip(SIZES, means, strict=True)}


class MaskIoU(MeanBySize):
    """The mean IoU over instances: `miou` and its groups by size, as in MeanBySize, and `num_instances`."""

    def __init__(self, *, closed: bool = False, sync_on_compute: bool = True) -> None:
        super().__init__("miou", closed=closed, sync_on_compute=sync_on_compute)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each group, and the number of instances."""
        return {**super().compute(), "num_instances": self.counts[0].long()}


class Calibration(Metric):
    """The calibration of a model: its predicted IoU against the true one.

    `compute` returns `iou_correlation`, which is Pearson's r in -1..1 (NaN where one of both does not vary), and
    `iou_error`, the mean absolute error in 0..1 (NaN without an instance).
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.add_state("sums", torch.zeros(7, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, iou: Tensor) -> None:
        """Add N instances: the predicted and the true IoU, (N,) each."""
        self.sums += calibration_terms(predicted.double(), iou.double()).sum(0).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the correlation and the error."""
        correlation, error = calibration_of(self.sums)
        return {"iou_correlation": correlation, "iou_error": error}


def size_groups(areas: Tensor, *, closed: bool = False) -> Tensor:
    """Return which instances belong to each of SIZES, bool (4, N), by their areas (N,) in original pixels.

    Args:
        closed: an instance at a bound belongs to the sizes on both sides of it, as in EfficientViT-SAM's evaluation
            (sam_eval_utils.py, lines 25 to 39).
    """
    large, small = areas >= LARGE_AREA, areas <= SMALL_AREA if closed else areas < SMALL_AREA
    medium = (areas >= SMALL_AREA) & (areas <= LARGE_AREA if closed else areas < LARGE_AREA)
    return torch.stack([torch.ones_like(large), large, medium, small])


def count_sizes(areas: np.ndarray, *, closed: bool = False) -> dict[str, int]:
    """Return the number of instances of each of SIZE_NAMES, as `size_groups` tells them apart."""
    _, *groups = size_groups(torch.from_numpy(areas), closed=closed)
    return {name: int(group.sum()) for name, group in zip(SIZE_NAMES, groups, strict=True)}


def calibration_terms(predicted: Tensor, iou: Tensor) -> Tensor:
    """Return the terms (N, 7) of predicted and true IoU (N,). Calibration is a function of their sum over instances."""
    ones = torch.ones_like(iou)
    return torch.stack([ones, predicted, iou, predicted**2, iou**2, predicted * iou, (predicted - iou).abs()], -1)


def calibration_of(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return correlation (...) and mean absolute error (...) from summed terms (..., 7)."""
    num = sums[..., 0]
    mean_x, mean_y, xx, yy, xy, error = (sums[..., 1:] / num[..., None]).unbind(-1)
    x_variance, y_variance = xx - mean_x**2, yy - mean_y**2
    vary = (x_variance > VARIANCE_FLOOR) & (y_variance > VARIANCE_FLOOR)
    deviations = (x_variance * y_variance).where(vary, torch.nan).sqrt()
    return (xy - mean_x * mean_y) / deviations, error


class EmbeddingCosine(Metric):
    """The mean over images of the mean cosine similarity of an image's valid positions; NaN without an image."""

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
        cosines = image_cosines(student, teacher, valid)
        seen = ~cosines.isnan()
        self.total += cosines[seen].sum()
        self.num_images += seen.sum()

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.num_images


def image_cosines(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cosine similarity (B,) of each image's valid positions, NaN without any.

    The arguments are those of EmbeddingCosine.update.
    """
    cosine = cosine_map(resize_to_grid(student.float(), teacher.shape[-1]), teacher)  # (B, E, E)
    return cosine.masked_fill(~valid, 0.0).flatten(1).sum(1) / valid.flatten(1).sum(1)
