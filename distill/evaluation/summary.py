"""The metrics of an evaluation, from the scores of its instances, and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.finished import CLICK_KEY
from distill.evaluation.prompting import InstanceScore
from distill.evaluation.scoring.bootstrap import Interval, bootstrap, number_photos, per_photo, percentile_interval
from distill.evaluation.scoring.metrics import (
    SIZES,
    Calibration,
    MaskIoU,
    MeanBySize,
    calibration_of,
    calibration_terms,
    size_groups,
)

Metrics = dict[str, Union[float, int, None]]


def summarize(scores: Sequence[InstanceScore], *, closed: bool = False) -> Metrics:
    """Average the scores of instances that have a truth. With several ranks, one holds the scores of all.

    Args:
        closed: an instance at the bound of two sizes belongs to both; see metrics.size_groups.
    Returns:
        `miou` and `boundary_iou` in 0..1, each also `_large`, `_medium` and `_small` (None for a group without an
        instance); `iou_correlation` and `iou_error` of the predicted IoU (see metrics.Calibration); `num_instances`
        and `num_images` (those with an instance).
    """
    areas, iou, boundary, predicted = _columns(scores)
    mask_iou, calibration = MaskIoU(closed=closed, sync_on_compute=False), Calibration(sync_on_compute=False)
    boundary_iou = MeanBySize("boundary_iou", closed=closed, sync_on_compute=False)
    for metric in (mask_iou, boundary_iou):
        metric.set_dtype(torch.float64)
    mask_iou.update(iou, areas)
    boundary_iou.update(boundary, areas)
    calibration.update(predicted, iou)
    computed = {**mask_iou.compute(), **boundary_iou.compute(), **calibration.compute()}
    values = {name: value.item() for name, value in computed.items()}
    rounded = {name: None if value != value else value for name, value in values.items()}  # NaN is not JSON
    return {**rounded, "num_images": len({score.image for score in scores})}


def score_intervals(scores: Sequence[InstanceScore], *, closed: bool = False, seed: int = 0) -> dict[str, Interval]:
    """Return bootstrap 95 % intervals of the metrics of `summarize`, all from the same resamples of the photos.

    With fewer than two photos, there is no interval.
    """
    keys = {image: i for i, image in enumerate(dict.fromkeys(score.image for score in scores))}
    if len(keys) < 2:
        return {}
    areas, iou, boundary, predicted = _columns(scores)
    groups = size_groups(areas, closed=closed).double()  # (4, N)
    terms = [*groups, *(groups * iou), *(groups * boundary), *calibration_terms(predicted, iou).T]
    photo_index = np.array([keys[score.image] for score in scores])
    sums = per_photo(torch.stack(list(terms), 1).numpy(), photo_index, len(keys))

    resampled = bootstrap(sums, lambda totals: np.stack(list(_statistics(totals).values()), 1), seed=seed)
    found = {name: percentile_interval(values) for name, values in zip(_statistics(sums), resampled.T, strict=True)}
    return {name: interval for name, interval in found.items() if interval is not None}


def click_metrics(
    scores: Sequence[InstanceScore], targets: Sequence[float], *, first: int = 1
) -> tuple[Metrics, dict[str, Interval]]:
    """Return what the clicks achieved, and bootstrap 95 % intervals. Both are empty without scores after each click.

    The number of clicks to an IoU (NoC) is RITM's (arXiv:2102.06583; its code, isegm/inference/utils.py,
    compute_noc_metric): the first click whose mask reaches it, or the most clicks for an instance that never does.

    Args:
        targets: IoUs in 0..1 for which clicks are counted.
        first: the number of clicks behind the first score: 0 where a box comes before them.
    Returns:
        `miou_click1` and so on, in 0..1; for a target of 0.85, `noc85` in clicks and `noc85_limit`, the number of
        instances that took as many clicks as the protocol has, or did not reach the target.
    """
    rows = [score.click_ious for score in scores if score.click_ious is not None]
    if not rows:
        return {}, {}
    ious = np.array(rows, np.float64)  # (N, K)
    means = {f"{CLICK_KEY}{first + k}": ious[:, k] for k in range(ious.shape[1])}
    limits: Metrics = {}
    for target in targets:
        clicks = num_clicks(ious, target)
        name = f"noc{100 * target:g}"
        means[name] = clicks.astype(np.float64)
        limits[f"{name}_limit"] = int((clicks == ious.shape[1]).sum())
    metrics: Metrics = {name: float(values.mean()) for name, values in means.items()}
    photos = [score.image for score in scores if score.click_ious is not None]
    return {**metrics, **limits}, _mean_intervals(means, photos)


def num_clicks(ious: np.ndarray, target: float) -> np.ndarray:
    """Return the clicks (N,) after which each instance reaches an IoU, from its IoUs after each click (N, K).

    It is K where none does.
    """
    reached = ious >= target
    found: np.ndarray = np.where(reached.any(1), reached.argmax(1) + 1, ious.shape[1])
    return found


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


def _mean_intervals(means: dict[str, np.ndarray], photos: Sequence[str]) -> dict[str, Interval]:
    """Return the intervals of means over instances, all from the same resamples of the photos."""
    index, num_photos = number_photos(photos)
    if num_photos < 2:
        return {}
    terms = np.stack([np.ones(len(photos)), *means.values()], 1)  # (N, 1 + M)
    resampled = bootstrap(per_photo(terms, index, num_photos), lambda totals: totals[:, 1:] / totals[:, :1])
    found = {name: percentile_interval(values) for name, values in zip(means, resampled.T, strict=True)}
    return {name: interval for name, interval in found.items() if interval is not None}
