from __future__ import annotations

from distill.bench.spread import Spread
from distill.comparison.plots import Point, front_of


def points(*costs: Spread | float) -> list[Point]:
    return [Point(i, str(i), cost, 0.1 * i) for i, cost in enumerate(costs)]


def by_mean(first: str, second: str) -> bool:
    """Take every difference of quality for one."""
    return int(first) < int(second)


def never(first: str, second: str) -> bool:
    return False


def test_latencies_within_their_noise_are_one_cost():
    same = points(Spread(273, 240, 301), Spread(235, 229, 270), Spread(241, 236, 262))
    assert front_of(same, by_mean).members == [2] and front_of(same, by_mean).joined == []
    assert front_of(same, never).members == [0, 1, 2] and front_of(same, never).joined == []


def test_counts_have_no_noise():
    assert front_of(points(1.0, 1.01), by_mean).joined == [0, 1]
    assert front_of(points(1.01, 1.0), by_mean).members == [1]
    assert front_of(points(1.0, 1.01), never).members == [0]


def test_latencies_without_any_spread_are_no_counts():
    assert front_of(points(Spread(1.0, 1.0, 1.0), Spread(1.01, 1.01, 1.01)), by_mean).joined == []
