"""Pareto fronts of measured points, in which a difference counts only if it is more than noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Better = Callable[[int, int], bool]  # whether the first of two points is measurably better than the second


class Front(NamedTuple):
    """What a plot shows of a front.

    members: the points that none is measurably better than in one measure while it is no worse in the other.
    joined: those of them that a line joins, the cheapest first: each is measurably costlier and better than the one
        before. Fewer than two make no line.
    """

    members: list[int]
    joined: list[int]


def measured_front(num_points: int, is_cheaper: Better, is_better: Better) -> Front:
    """Find the front of points whose measures are noisy.

    Args:
        is_cheaper, is_better: whether the first point costs measurably less, and has the measurably higher quality.
    """

    def is_behind(point: int, other: int) -> bool:
        ahead = is_cheaper(other, point) or is_better(other, point)
        return ahead and not (is_cheaper(point, other) or is_better(point, other))

    points = range(num_points)
    members = [point for point in points if not any(is_behind(point, other) for other in points)]
    # A member that is cheaper than more of the others comes first.
    ordered = sorted(members, key=lambda point: -sum(is_cheaper(point, other) for other in members))
    joined: list[int] = []
    for point in ordered:
        if not joined or (is_cheaper(joined[-1], point) and is_better(point, joined[-1])):
            joined.append(point)
    return Front(members, joined if len(joined) > 1 else [])
