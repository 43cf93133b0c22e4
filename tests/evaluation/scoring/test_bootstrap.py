"""Bootstrap intervals: their coverage, that photos and not instances are resampled, and pairing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill.evaluation.scoring.bootstrap import (
    bootstrap,
    mean_interval,
    paired_difference,
    paired_ratio,
    pairwise_intervals,
    per_photo,
    resample_counts,
)


def test_the_interval_of_independent_photos_is_the_normal_one():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    interval = mean_interval(values, range(400))
    assert interval is not None
    error = 1.96 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.2 * error)


def test_the_interval_holds_the_true_mean_in_95_of_100_cases():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        of_photo = rng.normal(0.6, 0.1, 60)  # 60 photos with 1 to 6 instances each
        photos = np.repeat(np.arange(60), rng.integers(1, 7, 60))
        interval = mean_interval(of_photo[photos] + rng.normal(0, 0.1, len(photos)), photos)
        assert interval is not None
        held += interval.low <= 0.6 <= interval.high
    assert 0.90 <= held / 200 <= 0.99


def test_instances_of_one_photo_count_as_one_draw():
    rng = np.random.default_rng(2)
    of_photo = rng.normal(0.5, 0.2, 50)
    whole, copies = mean_interval(of_photo, range(50)), mean_interval(np.repeat(of_photo, 20), np.repeat(range(50), 20))
    assert whole is not None and copies is not None
    assert copies == pytest.approx(whole)  # as many instances would give an interval a quarter as wide


def test_equal_values_leave_no_doubt():
    assert mean_interval([0.7] * 6, list("aabbcc")) == pytest.approx((0.7, 0.7))


def test_one_photo_says_nothing_of_others():
    assert mean_interval([0.1, 0.9], ["a", "a"]) is None
    assert mean_interval([], []) is None


def test_the_seed_decides():
    values = np.random.default_rng(3).random(30)
    assert mean_interval(values, range(30)) == mean_interval(values, range(30), seed=0)
    assert mean_interval(values, range(30)) != mean_interval(values, range(30), seed=1)


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(4)
    hardness = rng.normal(0, 0.2, 100)
    first, second = 0.60 + hardness + rng.normal(0, 0.01, 100), 0.58 + hardness
    found = paired_difference(first, second, range(100))
    alone = mean_interval(first, range(100))
    assert alone is not None
    assert found.mean == pytest.approx((first - second).mean()) and found.num == 100
    assert 0 < found.low < found.mean < found.high
    assert found.high - found.low < (alone.high - alone.low) / 5


def test_a_paired_difference_of_one_photo_has_no_interval():
    found = paired_difference([0.5, 0.7], [0.4, 0.4], ["a", "a"])
    assert found.mean == pytest.approx(0.2) and math.isnan(found.low) and math.isnan(found.high)


def test_every_resample_draws_as_many_photos_as_there_are():
    counts = np.concatenate(resample_counts(7, seed=0, num_resamples=1000))
    assert counts.shape == (1000, 7) and (counts.sum(1) == 7).all()
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.1)


def test_a_statistic_of_sums_without_instances_is_nan():
    sums = per_photo(np.array([[1.0, 1.0]]), np.array([0]), 3)  # two photos of three are empty
    found = bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 1], num_resamples=200)
    assert np.isnan(found).any() and np.nanmax(found) == np.nanmin(found) == 1


def test_all_pairs_at_once_are_the_pairs_one_by_one():
    rng = np.random.default_rng(3)
    values, photos = rng.random((3, 90)), np.repeat(range(30), 3)
    found = pairwise_intervals(values, photos)
    for i in range(3):
        for j in range(3):
            assert found[i, j] == pytest.approx(paired_difference(values[i], values[j], photos)[1:3], abs=1e-12)
    assert np.isnan(pairwise_intervals(values[:, :3], photos[:3])).all()


def test_a_ratio_leaves_out_one_where_the_difference_leaves_out_zero():
    rng = np.random.default_rng(4)
    photos = np.repeat(range(30), 3)
    for _ in range(50):
        first, second = rng.random(90), 0.9 * rng.random(90) + 0.1 * rng.random()
        difference, ratio = paired_difference(first, second, photos), paired_ratio(first, second, photos)
        assert ratio is not None and ratio.low <= first.mean() / second.mean() <= ratio.high
        assert (ratio.low > 1, ratio.high < 1) == (difference.low > 0, difference.high < 0)


def test_a_ratio_that_nothing_tells():
    assert paired_ratio([0.5, 0.5], [0.1, 0.1], ["a", "a"]) is None  # one photo
    assert paired_ratio([0.5, 0.5], [0.0, 0.0], ["a", "b"]) is None
