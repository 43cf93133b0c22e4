from __future__ import annotations

import numpy as np

from distill.comparison.gallery import choose_instances


def test_the_gallery_shows_the_worst_of_each_size_and_others():
    rng = np.random.default_rng(0)
    ious = rng.random((2, 100))
    areas = np.array([100.0] * 2 + [2000.0] * 49 + [20000.0] * 49)
    chosen = choose_instances(ious, areas, 20)
    mean = ious.mean(0)
    assert len(set(chosen)) == 20 and {0, 1} <= set(chosen)
    assert [mean[i] for i in chosen] == sorted(mean[chosen])
    assert int(mean.argmin()) == chosen[0]
    assert {2 + int(mean[2:51].argmin()), 51 + int(mean[51:].argmin())} <= set(chosen)
    assert max(mean[chosen]) > 0.7  # good ones too
    assert choose_instances(ious[:, :3], areas[:3], 20) == sorted(range(3), key=lambda i: mean[i])
