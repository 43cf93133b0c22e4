from __future__ import annotations

from distill.comparison.plots import Point, best_points


def test_the_pareto_front():
    points = [Point(i, str(i), *xy) for i, xy in enumerate([(1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9)])]
    assert [point.label for point in best_points(points)] == ["0", "2", "4"]
