from __future__ import annotations

import numpy as np
import pytest

from distill.bench.spread import ASSUMED_SPREAD, LEAST_DIFFERENCE, Spread, latency_spread, pooled


def run(latency: float, *rounds: float) -> dict[str, float]:
    found = {"latency_ms": latency}
    if rounds:
        found |= {"latency_low_ms": min(rounds), "latency_high_ms": max(rounds), "rounds": len(rounds)}
    return found


def apart(first: Spread, second: Spread) -> bool:
    return first.is_below(second) or second.is_below(first)


def test_ranges_that_overlap_are_no_difference() -> None:
    slow, same = latency_spread(run(273, 240, 251, 273, 280, 301)), latency_spread(run(235, 229, 233, 235, 243, 270))
    fast = latency_spread(run(24, 22, 23, 24, 25, 31))
    assert not apart(slow, same)
    assert fast.is_below(slow) and not slow.is_below(fast)


def test_without_rounds_a_spread_is_assumed() -> None:
    """Check it on three identical encoders, of which an earlier bench kept the medians alone."""
    found = [latency_spread(run(value)) for value in (235, 241, 273)]
    assert not any(spread.is_measured for spread in found)
    assert not any(apart(first, second) for first in found for second in found)
    assert latency_spread(run(100)).high == pytest.approx(100 * (1 + ASSUMED_SPREAD))
    assert latency_spread(run(20)).is_below(found[0])
    assert not latency_spread(run(100, 99, 100, 101)).is_measured  # three rounds are too few


def test_a_tiny_difference_is_none_however_steady() -> None:
    steady = latency_spread(run(100, *[100.0] * 5))
    assert not apart(steady, latency_spread(run(102, *[102.0] * 5)))
    assert steady.is_below(latency_spread(run(100 * (1 + 2 * LEAST_DIFFERENCE), *[106.0] * 5)))


def test_equally_fast_encoders_are_rarely_told_apart() -> None:
    """Five rounds of two equal encoders leave no overlap in 2 of 252 orders."""
    rng = np.random.default_rng(0)
    rounds = rng.lognormal(5.5, 0.1, (4000, 2, 5))
    found = sum(apart(*(latency_spread(run(float(np.median(of_one)), *of_one)) for of_one in pair)) for pair in rounds)
    assert 0 < found < 0.012 * len(rounds)


def test_pooling_covers_all_that_was_measured() -> None:
    spreads = [Spread(235, 230, 250), Spread(241, 236, 260), Spread(273, 240, 301)]
    assert pooled(spreads) == Spread(241, 230, 301)
    assert not pooled([*spreads, Spread(250, 240, 260, is_measured=False)]).is_measured
