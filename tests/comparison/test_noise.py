"""Which differences a comparison takes for more than noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.comparison.noise import is_lower_score, latencies, shared_encoders
from distill.comparison.page import render_page
from distill.comparison.plots import quality_plots
from distill.comparison.tables import size_columns
from distill.evaluation.scoring.bootstrap import paired_difference
from tests.fixtures.evaluations import bench_row, compared_of, some_ious, write_evaluation

FRONT = "stroke: var(--axis, #8a94a0); stroke-width: 1.2"  # of the line of a front; the frame's is thinner
# Three identical encoders, as one bench measured them on a shared machine.
ROUNDS = {"a": (229.0, 233.0, 235.0, 243.0, 270.0), "b": (236.0, 239.0, 241.0, 250.0, 262.0)}
ROUNDS["c"] = (264.0, 268.0, 273.0, 280.0, 301.0)  # above all rounds of a and b but for one


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Write evaluations of three models: b is better than a by more than the noise, and c is not."""
    means = {"a": some_ious(0.70), "b": some_ious(0.75), "c": some_ious(0.701, seed=1)}
    return [write_evaluation(tmp_path / name, ious) for name, ious in means.items()]


def test_identical_encoders_have_one_latency_and_no_line(places):
    comparison = compared_of(places, [bench_row(name, *rounds) for name, rounds in ROUNDS.items()])
    found = latencies(comparison)
    assert {spread.value for spread in found.values()} == {241.0}
    assert found["a"] == found["b"] == found["c"] == (241.0, 229.0, 301.0, True)
    assert shared_encoders(comparison) == [["a", "b", "c"]]
    page = render_page(comparison, num_rows=0)
    assert "a, b, c have the same encoder, so what was measured of each counts for all: no difference." in page
    assert "as many as its encoder" in page and "no measured difference in speed" in page
    assert page.count("241.0<small>[229.0, 301.0]</small>") == 3
    assert FRONT not in page


def test_other_encoders_keep_their_own_latency(places):
    rows = [bench_row("a", *ROUNDS["a"]), bench_row("b", *ROUNDS["b"], macs=5e9)]
    comparison = compared_of(places, [*rows, bench_row("c", 21, 22, 22, 23, 24, encoder_params=9, macs=1e9)])
    found = latencies(comparison)
    assert [found[name].value for name in "abc"] == [235.0, 241.0, 22.0]
    assert not found["a"].is_below(found["b"]) and found["c"].is_below(found["a"])
    assert shared_encoders(comparison) == []
    (protocol,) = comparison.protocols
    assert all(FRONT in plot for plot in quality_plots(comparison, protocol, size_columns(comparison)[2:4]))
    (column,) = [column for column in size_columns(comparison) if column.title.startswith("latency")]
    assert [str(cell) for cell in column.cells] == ["235.0 [229.0, 270.0]", "241.0 [236.0, 262.0]", "22.0 [21.0, 24.0]"]


def test_a_bench_without_rounds_says_that_its_spread_is_assumed(places):
    row = bench_row("a", 100.0)
    page = render_page(compared_of(places, [row]), num_rows=0)
    assert "The latency of a has no measured spread; ±8% is assumed." in page.replace("8 %", "8%")


def test_scores_differ_where_their_paired_interval_leaves_out_zero(places):
    comparison = compared_of(places)
    is_lower = is_lower_score(comparison, comparison.protocols[0])
    assert is_lower("a", "b") and not is_lower("b", "a")
    assert not is_lower("a", "c") and not is_lower("c", "a")
    ious = {model.label: evaluation for model, evaluation in comparison.evaluations(comparison.protocols[0])}
    first, second = (ious[name].instances for name in "ab")
    assert paired_difference(first.ious, second.ious, first.photos).high < 0


def test_scores_without_instances_differ_by_their_own_intervals(tmp_path):
    def write(name: str, ap: float, *interval: float) -> Path:
        metrics = {"protocol": "coco_detections", "prompt": "detection", "ap": ap, "intervals": {"ap": interval}}
        place = write_evaluation(tmp_path / name, np.full(120, 0.5), **metrics)
        content = (place / "metrics.json").read_text()
        (place / "metrics.json").write_text(content.replace('"miou"', '"mean_of_masks"'))
        return place

    comparison = compared_of([write("a", 0.30, 0.27, 0.33), write("b", 0.35, 0.34, 0.37), write("c", 0.31, 0.28, 0.35)])
    is_lower = is_lower_score(comparison, comparison.protocols[0])
    assert is_lower("a", "b") and not is_lower("a", "c") and not is_lower("c", "b")
