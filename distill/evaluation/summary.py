"""The metrics of an evaluation, from the scores of its instances, and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.bootstrap import Interval, bootstrap, per_photo, percentile_interval
from distill.evaluation.metrics import (
    SIZES,
    Calibration,
    MaskIoU,
    MeanBySize,
    calibration_of,
    calibration_terms,
    size_groups,
)
from distill.evaluation.prompting import InstanceScore

Metrics = dict[str, Union[float, int, None]]


def summarize(scores: Sequence[InstanceScore]) -> Metrics:
    """Average the scores of instances that have a truth. With several ranks, one holds the scores of all.

    Returns:
        `miou` and `boundary_iou` in 0..1, each also `_large`, `_medium` and `_small` (None for a group without an
        instance); `iou_correlation` and `iou_error` of the predicted IoU (see metrics.Calibration); `num_instances`
        and `num_images` (those with an instance).
    """
    areas, iou, boundary, predicted = _columns(scores)
    mask_iou, calibration = MaskIoU(sync_on_compute=False), Calibration(sync_on_compute=False)
    boundary_iou = MeanBySize("boundary_iou", sync_on_compute=False)
    for metric in (mask_iou, boundary_iou):
        metric.set_dtype(torch.float64)
    mask_iou.update(iou, areas)
    boundary_iou.update(boundary, areas)
    calibration.update(predicted, iou)
    computed = {**mask_iou.compute(), **boundary_iou.compute(), **calibration.compute()}
    values = {name: value.item() for name, value in computed.items()}
    rounded = {name: None if value != value else value for name, value in values.items()}  # NaN is not JSON
    return {**rounded, "num_images": len({score.image for score in scores})}


def score_intervals(scores: Sequence[InstanceScore], *, seed: int = 0) -> dict[str, Interval]:
    """Return bootstrap 95 % intervals of the metrics of `summarize`, all from the same resamples of the photos.

    With fewer than two photos, there is no interval.
    """
    keys = {image: i for i, image in enumerate(dict.fromkeys(score.image for score in scores))}
    if len(keys) < 2:
        return {}
    areas, iou, boundary, predicted = _columns(scores)
    groups = size_groups(areas).double()  # (4, N)
    terms = [*groups, *(groups * iou), *(groups * boundary), *calibration_terms(predicted, iou).T]
    photo_index = np.array([keys[score.image] for score in scores])
    sums = per_photo(torch.stack(list(terms), 1).numpy(), photo_index, len(keys))

    resampled = bootstrap(sums, lambda totals: np.stack(list(_statistics(totals).values()), 1), seed=seed)
    found = {name: percentile_interval(values) for name, values in zip(_statistics(sums), resampled.T, strict=True)}
    return {name: interval for name, interval in found.items() if interval is not None}


def _statistics(totals: np.ndarray) -> dict[str, np.ndarray]:
    """Return each mean and the calibration of R resamples, (R,), from their summed terms (R, K).

    The K terms are those of `score_intervals`.
    """
    num = len(SIZES)
    found = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for i, size in enumerate(SIZES):
            found[f"miou{size}"] = totals[:, num + i] / totals[:, i]
            found[f"boundary_iou{size}"] = totals[:, 2 * num + i] / totals[:, i]
    correlation, error = calibration_of(torch.from_numpy(totals[:, 3 * num :]))
    return {**found, "iou_correlation": correlation.numpy(), "iou_error": error.numpy()}


def _columns(scores: Sequence[InstanceScore]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return areas, IoU, boundary IoU and predicted IoU, float64 (N,) each."""
    rows = [(score.area, score.iou, score.boundary_iou, score.predicted_iou) for score in scores]
    areas, iou, boundary, predicted = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1)
    return areas, iou, boundary, predicted
