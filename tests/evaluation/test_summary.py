"""The mean IoU after each click, and the number of clicks to an IoU, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distill.evaluation.prompting import InstanceScore
from distill.evaluation.summary import click_metrics, num_clicks

IOUS = {"a": [0.5, 0.9, 0.7], "b": [0.85, 0.85, 0.95], "c": [0.1, 0.2, 0.3]}


def scores(ious: dict[str, list[float]]) -> list[InstanceScore]:
    return [InstanceScore(name, 1, 10, row[-1], 0.5, {}, click_ious=row) for name, row in ious.items()]


def test_the_first_click_that_reaches_the_target_counts():
    assert num_clicks(np.array(list(IOUS.values())), 0.85).tolist() == [2, 1, 3]
    assert num_clicks(np.array(list(IOUS.values())), 0.9).tolist() == [2, 3, 3]


def test_means_and_counts_by_hand():
    metrics, intervals = click_metrics(scores(IOUS), [0.85, 0.9])
    assert [metrics[f"miou_click{k}"] for k in (1, 2, 3)] == pytest.approx([1.45 / 3, 1.95 / 3, 1.95 / 3])
    assert metrics["noc85"] == pytest.approx(2) and metrics["noc90"] == pytest.approx(8 / 3)
    assert (metrics["noc85_limit"], metrics["noc90_limit"]) == (1, 2)
    assert intervals.keys() == metrics.keys() - {"noc85_limit", "noc90_limit"}
    assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items())


def test_prompts_of_one_click_have_no_curve():
    assert click_metrics([InstanceScore("a", 1, 10, 0.5, 0.5, {})], []) == ({}, {})
    one_photo = click_metrics(scores({"a": IOUS["a"]}), [])
    assert list(one_photo[0]) == ["miou_click1", "miou_click2", "miou_click3"] and one_photo[1] == {}
