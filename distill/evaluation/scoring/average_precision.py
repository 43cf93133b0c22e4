"""Average precision (AP) and recall (AR): pycocotools' own numbers, or LVIS's, and their bootstrap intervals."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from distill.data.coco import CocoSet
from distill.data.lvis import LvisSet
from distill.data.rle import check_code, rle_area
from distill.errors import DataError
from distill.evaluation.scoring.bootstrap import Interval, bootstrap, percentile_interval, resample_counts
from distill.evaluation.scoring.lvis_rules import FREQUENCIES, MAX_DETECTIONS, LvisEval, best_of_each_photo

Results = list[dict[str, Any]]
Intervals = dict[str, Interval]

# Our names for the rows of pycocotools' summary, in its order
COCO_METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
AREAS = ("", "_small", "_medium", "_large")  # pycocotools' and LVIS's order
AP50_ROW, AP75_ROW = 0, 5  # among the thresholds .50, .55, ... .95
NUM_RESAMPLES = 200  # each costs a summary of all detections
PROPOSALS = (10, 100, 1000)  # AR is computed for so many masks of each photo


@dataclass
class Precision:
    """The average precision of a model over a set.

    metrics: AP and AR in 0..1, None where no such object is annotated. resampled: (R,) AP of R resamples of the photos.
    """

    metrics: dict[str, float | None]
    resampled: dict[str, np.ndarray]
    num_photos: int

    def intervals(self) -> Intervals:
        """Return the interval of every AP that is defined, or none with fewer than two photos."""
        if self.num_photos < 2:
            return {}
        found = {name: percentile_interval(values) for name, values in self.resampled.items()}
        return {name: interval for name, interval in found.items() if interval and self.metrics[name] is not None}


def average_precision(coco_set: CocoSet, results: Results, image_ids: Collection[int], *, seed: int = 0) -> Precision:
    """Compute the AP of masks against the instances of some photos. Crowd regions count as in pycocotools.

    Args:
        results: rows of COCO's results format with a segmentation and no bbox (with one, pycocotools takes the box's
            area for the size of a detection); at least one.
        image_ids: the file's ids of the photos.
    Raises:
        DataError: the annotations name no categories.
    """
    if not coco_set.categories:
        raise DataError(f"{coco_set.annotations_file}: has no 'categories'; AP is a mean over categories: add them")
    content = _truth_of(coco_set, image_ids)
    if isinstance(coco_set, LvisSet):
        results = best_of_each_photo(results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, detections = _indexed(content, results)
        evaluator = (LvisEval if isinstance(coco_set, LvisSet) else COCOeval)(truth, detections, "segm")
        evaluator.params.imgIds = sorted(image_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        if isinstance(evaluator, LvisEval):
            metrics = lvis_summary(evaluator)
        else:
            evaluator.summarize()
            metrics = dict(zip(COCO_METRICS, map(_value, evaluator.stats), strict=True))
    return Precision(metrics, resampled_precision(evaluator, seed=seed), len(image_ids))


def average_recall(
    coco_set: CocoSet, results: Results, image_ids: Collection[int], *, seed: int = 0
) -> tuple[dict[str, float | None], Intervals]:
    """Compute the AR of proposals, whatever their category, averaged over IoU thresholds .50 to .95.

    Args:
        results: as for `average_precision`. The category is ignored.
    Returns:
        the metrics `ar_10`, `ar_100` and `ar_1000`, and the last by size of the object; and their intervals.
    """
    content = _truth_of(coco_set, image_ids)
    one_category = {
        **content,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**row, "category_id": 1} for row in content["annotations"]],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth, proposals = _indexed(one_category, [{**row, "category_id": 1} for row in results])
        evaluator = COCOeval(truth, proposals, "segm")
        evaluator.params.imgIds = sorted(image_ids)
        evaluator.params.maxDets = list(PROPOSALS)
        evaluator.evaluate()
        evaluator.accumulate()
    recall = evaluator.eval["recall"]  # (T, 1, A, M)
    metrics = {f"ar_{num}": _mean(recall[:, :, 0, i]) for i, num in enumerate(PROPOSALS)}
    metrics |= {f"ar{size}": _mean(recall[:, :, i, -1]) for i, size in enumerate(AREAS) if size}
    return metrics, _recall_intervals(evaluator, metrics, seed=seed)


def lvis_summary(evaluator: LvisEval) -> dict[str, float | None]:
    """Return the summary of the `lvis` package: AP over all categories and by frequency, and AR at 300."""
    precision, recall = evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0]  # (T, R, K, A), (T, K, A)
    everything = precision[..., 0]
    metrics = {"ap": _mean(everything), "ap50": _mean(everything[AP50_ROW]), "ap75": _mean(everything[AP75_ROW])}
    metrics |= {f"ap{size}": _mean(precision[..., i]) for i, size in enumerate(AREAS) if size}
    metrics |= {name: _mean(everything[..., evaluator.frequency_rows(letter)]) for name, letter in FREQUENCIES.items()}
    metrics[f"ar_{MAX_DETECTIONS}"] = _mean(recall[..., 0])
    return metrics | {f"ar{size}": _mean(recall[..., i]) for i, size in enumerate(AREAS) if size}


def resampled_precision(
    evaluator: COCOeval, *, seed: int = 0, counts: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Compute the AP of every resample of the photos, (R,) by name, from the matches that `evaluate` found.

    Args:
        counts: (R, M) how often each resample draws each photo. The default is NUM_RESAMPLES bootstrap draws.
    """
    num_photos = len(evaluator.params.imgIds)
    if counts is None:
        counts = np.concatenate(resample_counts(num_photos, seed=seed, num_resamples=NUM_RESAMPLES))
    found = {}
    for i, size in enumerate(AREAS):
        rows = [_rows(evaluator, category, i) for category in range(len(evaluator.params.catIds))]
        of_categories = np.stack([_resampled(row, counts, evaluator.params) for row in rows])  # (K, R, T)
        found[f"ap{size}"] = _defined_mean(of_categories)
        if not size:
            found["ap50"] = _defined_mean(of_categories[..., [AP50_ROW]])
            found["ap75"] = _defined_mean(of_categories[..., [AP75_ROW]])
            if isinstance(evaluator, LvisEval):
                groups = {name: evaluator.frequency_rows(letter) for name, letter in FREQUENCIES.items()}
                found |= {name: _defined_mean(of_categories[group]) for name, group in groups.items()}
    return found


def _resampled(rows: Sequence[dict[str, Any] | None], counts: np.ndarray, params: Any) -> np.ndarray:
    """Compute the AP of one category and area in every resample: (R, T), NaN where a resample has no such object.

    Precision is highest right after a match, so only matches are looked at. Each recall threshold gets the highest
    precision from the first match on that reaches it.
    """
    num_thresholds, num_resamples = len(params.iouThrs), len(counts)
    found = np.full((num_resamples, num_thresholds), np.nan)
    seen = [(photo, row) for photo, row in enumerate(rows) if row is not None]
    num_truths = counts @ [0 if row is None else int((row["gtIgnore"] == 0).sum()) for row in rows]  # (R,)
    has_truth = num_truths > 0
    if not has_truth.any():
        return found
    scores = np.concatenate([row["dtScores"] for _, row in seen])
    order = np.argsort(-scores, kind="mergesort")
    photo_of = np.concatenate([[photo] * len(row["dtScores"]) for photo, row in seen]).astype(int)[order]
    matched = np.concatenate([row["dtMatches"] for _, row in seen], 1)[:, order] != 0  # (T, D)
    counted = ~np.concatenate([row["dtIgnore"] for _, row in seen], 1)[:, order].astype(bool)
    for t in range(num_thresholds):
        weights = counts[np.ix_(has_truth, photo_of[counted[t]])]  # (r, d)
        is_match = matched[t, counted[t]]
        matches = weights[:, is_match].cumsum(1)
        precision = matches / np.maximum(weights.cumsum(1)[:, is_match], 1)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        reached = np.searchsorted(params.recThrs, matches / num_truths[has_truth, None], side="right")
        newly = np.diff(reached, axis=1, prepend=0)
        found[has_truth, t] = (precision * newly).sum(1) / len(params.recThrs)
    return found


def _rows(evaluator: COCOeval, category: int, area: int) -> list[dict[str, Any] | None]:
    """Return what `evaluate` found for a category and an area: one row per photo, in the order of params.imgIds."""
    num_photos, num_areas = len(evaluator.params.imgIds), len(evaluator.params.areaRng)
    start = (category * num_areas + area) * num_photos
    rows: list[dict[str, Any] | None] = evaluator.evalImgs[start : start + num_photos]
    return rows


def _recall_intervals(evaluator: COCOeval, metrics: dict[str, float | None], *, seed: int) -> Intervals:
    """Return the intervals of AR. The numbers of found and of annotated objects are sums over photos."""

    def interval(area: int, num: int) -> Any:
        rows = _rows(evaluator, 0, area)
        num_thresholds = len(evaluator.params.iouThrs)
        sums = np.zeros((len(rows), num_thresholds + 1))
        for sum_, row in zip(sums, rows, strict=True):
            if row is not None:
                found = (row["dtMatches"][:, :num] != 0) & ~row["dtIgnore"][:, :num].astype(bool)
                sum_[:] = [*found.sum(1), (row["gtIgnore"] == 0).sum()]
        recalls = bootstrap(sums, lambda totals: (totals[:, :-1] / totals[:, -1:]).mean(1), seed=seed)
        return percentile_interval(recalls) if len(rows) > 1 else None

    wanted = {f"ar_{num}": (0, num) for num in PROPOSALS}
    wanted |= {f"ar{size}": (i, PROPOSALS[-1]) for i, size in enumerate(AREAS) if size}
    found = {name: interval(area, num) for name, (area, num) in wanted.items()}
    return {name: pair for name, pair in found.items() if pair and metrics[name] is not None}


def _indexed(content: dict[str, Any], results: Results) -> tuple[COCO, COCO]:
    """Convert truth and the results on its photos to pycocotools' classes, which write into copies of the results."""
    for row in results:
        check_code(row["segmentation"], "a mask of the results")
    truth = COCO()
    truth.dataset = {"info": {}, **content}
    truth.createIndex()
    rows = [{**row} for row in results if row["image_id"] in truth.imgs]
    if rows:
        return truth, truth.loadRes(rows)
    nothing = COCO()  # loadRes looks at the first row
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return truth, nothing


def _truth_of(coco_set: CocoSet, image_ids: Collection[int]) -> dict[str, Any]:
    """Return the annotations of some photos as pycocotools reads them, with codes of masks that have pixels.

    Annotations get new ids from 1 on, because pycocotools uses the id 0 for "matches nothing".
    """
    chosen = set(image_ids)
    of_lvis = isinstance(coco_set, LvisSet)  # which has no crowd regions
    annotations = [
        {
            "image_id": row.image_id,
            "category_id": row.category_id,
            "area": rle_area(rle) if row.area is None else row.area,
            "iscrowd": 0 if of_lvis else int(row.iscrowd or 0),
            "segmentation": rle,
        }
        for image_id in sorted(chosen)
        for row, rle in coco_set.masks_of(image_id)
    ]
    return {
        "images": [msgspec.to_builtins(image) for image in coco_set.content.images if image.id in chosen],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, 1)],
        "categories": msgspec.to_builtins(coco_set.content.categories),
    }


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the defined values. pycocotools marks undefined ones by -1."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else None


def _value(value: float) -> float | None:
    return None if value == -1 else float(value)


def _defined_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean (R,) over categories and thresholds of values (K, R, T), NaN where none is defined."""
    defined = ~np.isnan(values)
    num = defined.sum((0, 2))
    return np.where(num, np.where(defined, values, 0).sum((0, 2)) / np.maximum(num, 1), np.nan)
