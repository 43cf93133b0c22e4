from __future__ import annotations

import numpy as np
import pytest

from distill.comparison.gallery import choose_instances


def test_the_gallery_shows_worst_median_and_best_of_each_size_in_turn():
    rng = np.random.default_rng(0)
    ious = rng.random((2, 102))
    areas = np.array([100.0] * 6 + [2000.0] * 48 + [20000.0] * 48)
    chosen = choose_instances(ious, areas, 18)
    mean = ious.mean(0)
    assert len(chosen) == 18
    sizes = {"small": range(6), "medium": range(6, 54), "large": range(54, 102)}
    for size, group in sizes.items():
        order = sorted(group, key=lambda i: mean[i])
        of = {
            kind: [i for i, why in chosen.items() if why == f"{kind} of {size}"] for kind in ("worst", "median", "best")
        }
        assert of["worst"] == order[:2] and of["best"] == order[:-3:-1]
        middle = order[len(order) // 2 - 1 : len(order) // 2 + 1]
        assert sorted(of["median"]) == sorted(middle)
    kinds = [why.split()[0] for why in chosen.values()]
    assert kinds == ["worst", "median", "best"] * 6  # in turn
    assert [why.split()[-1] for why in list(chosen.values())[:9:3]] == ["small", "medium", "large"]


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 7, 20])
def test_few_instances_are_each_shown_once(num_rows):
    rng = np.random.default_rng(1)
    ious, areas = rng.random((1, 5)), np.array([100.0, 100.0, 2000.0, 20000.0, 20000.0])
    chosen = choose_instances(ious, areas, num_rows)
    assert len(chosen) == min(num_rows, 5) and set(chosen) <= set(range(5))
