"""Bootstrap 95 % intervals. Photos are resampled, not instances, because the instances of one photo are correlated.

Every statistic is a function of sums over photos, so a resample is a product of photo counts with the photos' sums.
The intervals are percentiles: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2000
LEVEL = 0.95
COUNTS_AT_ONCE = 4_000_000  # counts in one block of resamples: 32 MB


class Interval(NamedTuple):
    """The middle 95 % of the resamples."""

    low: float
    high: float


class Difference(NamedTuple):
    """Mean of first - second over `num` instances that both models answered, and its interval."""

    mean: float
    low: float
    high: float
    num: int


def mean_interval(values: npt.ArrayLike, photos: Sequence[Any] | np.ndarray, *, seed: int = 0) -> Interval | None:
    """Return the interval of a mean over instances.

    Args:
        values: (N,) one of each instance. photos: (N,) the photo of each, any labels.
    Returns:
        None with fewer than two photos, because they say nothing about other photos.
    """
    numbers = np.asarray(values, np.float64)
    index, num_photos = number_photos(photos)
    if num_photos < 2:
        return None
    sums = per_photo(np.stack([numbers, np.ones_like(numbers)], 1), index, num_photos)
    resampled = bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 1], seed=seed)
    return percentile_interval(resampled)


def paired_difference(
    first: npt.ArrayLike, second: npt.ArrayLike, photos: Sequence[Any] | np.ndarray, *, seed: int = 0
) -> Difference:
    """Return how much better the first model is than the second, on the same instances in the same order.

    Both are resampled together, so a photo that is hard for both cancels out.

    Returns:
        the mean difference and its interval. With fewer than two photos, low and high are NaN.
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    interval = mean_interval(differences, photos, seed=seed) or Interval(float("nan"), float("nan"))
    mean = float(differences.mean()) if len(differences) else float("nan")
    return Difference(mean, *interval, len(differences))


def paired_ratio(
    first: npt.ArrayLike, second: npt.ArrayLike, photos: Sequence[Any] | np.ndarray, *, seed: int = 0
) -> Interval | None:
    """Return the interval of the first model's mean as a share of the second's, on the same instances.

    Both are resampled together, as in `paired_difference`: the interval leaves out 1 where that one leaves out 0.

    Returns:
        None with fewer than two photos, or where no resample has a second mean other than 0.
    """
    index, num_photos = number_photos(photos)
    if num_photos < 2:
        return None
    rows = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)], 1)
    sums = per_photo(rows, index, num_photos)

    def ratio(totals: np.ndarray) -> np.ndarray:
        shares: np.ndarray = np.where(totals[:, 1] == 0, np.nan, totals[:, 0] / totals[:, 1])
        return shares

    return percentile_interval(bootstrap(sums, ratio, seed=seed))


def pairwise_intervals(values: np.ndarray, photos: Sequence[Any] | np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return the intervals of the differences between all pairs of models, each as `paired_difference` gives it.

    Args:
        values: (M, N), of M models for the same N instances. photos: (N,) the photo of each.
    Returns:
        (M, M, 2): at [i, j] low and high of model i's mean minus model j's; NaN with fewer than two photos.
    """
    num_models = len(values)
    found = np.full((num_models, num_models, 2), np.nan)
    index, num_photos = number_photos(photos)
    if num_photos < 2:
        return found
    columns = np.stack([*np.asarray(values, np.float64), np.ones(values.shape[1])], 1)  # (N, M + 1)
    sums = per_photo(columns, index, num_photos)
    means = bootstrap(sums, lambda totals: totals[:, :-1] / totals[:, -1:], seed=seed)  # (R, M)
    for i in range(num_models):
        for j in range(num_models):
            if (interval := percentile_interval(means[:, i] - means[:, j])) is not None:
                found[i, j] = interval
    return found


def per_photo(rows: np.ndarray, photo_index: np.ndarray, num_photos: int) -> np.ndarray:
    """Sum rows (N, K) by photo: float64 (num_photos, K)."""
    sums = np.zeros((num_photos, rows.shape[1]))
    np.add.at(sums, photo_index, rows)
    return sums


def bootstrap(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> np.ndarray:
    """Return a statistic of every resample of the photos.

    Args:
        sums: (M, K) sums of each photo. statistic: from sums over the photos of a resample, (R, K), to (R, ...).
    Returns:
        the statistic, (num_resamples, ...); NaN where a resample has no instance.
    """
    totals = [counts @ sums for counts in resample_counts(len(sums), seed=seed, num_resamples=num_resamples)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return statistic(np.concatenate(totals))


def resample_counts(num_photos: int, *, seed: int, num_resamples: int) -> list[np.ndarray]:
    """Draw resamples: blocks of float64 (r, M), each row the number of times that a resample draws each of M photos."""
    rng = np.random.default_rng(seed)
    block = max(1, COUNTS_AT_ONCE // num_photos)
    blocks = []
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        drawn = rng.integers(0, num_photos, (rows, num_photos)) + num_photos * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num_photos)
        blocks.append(counts.reshape(rows, num_photos).astype(np.float64))
    return blocks


def percentile_interval(resampled: np.ndarray) -> Interval | None:
    """Return the middle 95 % of resampled statistics (R,), or None if all of them are NaN."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def number_photos(photos: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, int]:
    """Return the number of each instance's photo, in order of first appearance, and the count of photos."""
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(photo, len(numbers)) for photo in photos], np.int64)
    return index, len(numbers)
