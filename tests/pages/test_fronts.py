from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from distill.pages.fronts import Front, measured_front

Noisy = tuple[float, float]  # value and half of its range


def front_of(points: Sequence[tuple[Noisy, Noisy]]) -> Front:
    """Return the front of points, each a cost and a quality."""

    def differ(first: Noisy, second: Noisy) -> bool:
        return first[0] + first[1] < second[0] - second[1]

    return measured_front(
        len(points), lambda i, j: differ(points[i][0], points[j][0]), lambda i, j: differ(points[j][1], points[i][1])
    )


def test_equal_points_are_not_joined() -> None:
    same = [((235.0, 20.0), (0.70, 0.01)), ((241.0, 20.0), (0.71, 0.01)), ((273.0, 20.0), (0.705, 0.01))]
    assert front_of(same) == Front([0, 1, 2], [])


def test_a_line_joins_what_is_costlier_and_better() -> None:
    points = [((100.0, 5.0), (0.8, 0.01)), ((20.0, 2.0), (0.6, 0.01)), ((21.0, 2.0), (0.605, 0.01))]
    front = front_of([*points, ((100.0, 5.0), (0.7, 0.01))])
    assert front.members == [0, 1, 2] and front.joined == [1, 0]  # the last is as costly as the first, and worse


def test_as_good_and_cheaper_is_in_front() -> None:
    assert front_of([((100.0, 1.0), (0.80, 0.05)), ((10.0, 1.0), (0.79, 0.05))]).members == [1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8, unique=True))
def test_without_noise_it_is_the_pareto_front(pairs: list[tuple[int, int]]) -> None:
    front = front_of([((cost, 0.0), (quality, 0.0)) for cost, quality in pairs])
    beaten = {
        pair for pair in pairs for other in pairs if other != pair and other[0] <= pair[0] and other[1] >= pair[1]
    }
    assert {pairs[i] for i in front.members} == set(pairs) - beaten
    assert sorted(front.joined) == sorted(front.members) or len(front.members) == 1  # all of a front without noise
    for first, second in itertools.pairwise(front.joined):
        assert pairs[first][0] < pairs[second][0] and pairs[first][1] < pairs[second][1]
