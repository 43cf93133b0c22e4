from __future__ import annotations

import json
import re
from pathlib import Path

from distill.pages.plots import (
    COLOURS,
    MAX_POINTS,
    TREND_POINTS,
    Curve,
    colour_of,
    look_of,
    marker_of,
    plot_curves,
    read_curves,
)


def test_curves_come_from_the_steps_that_logged_them(tmp_path: Path) -> None:
    rows = [{"step": 0, "train/loss": 2.0}, {"step": 5, "val/cosine": 0.5}, {"step": 9, "train/loss": 1.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curves(path, ["train/loss", "val/box_miou"]) == [Curve("train/loss", [0, 9], [2.0, 1.0])]
    assert read_curves(tmp_path / "absent.jsonl", ["train/loss"]) == []


def test_a_plot_is_inline_svg() -> None:
    drawn = plot_curves([Curve("one", [0, 1], [0.0, 1.0])], "a <title>", "unit")
    assert drawn.startswith('<figure><svg role="img" aria-label="a &lt;title&gt;"')


def test_a_plot_follows_the_page() -> None:
    """No colour is left that would not change with the page; what is drawn has no ground of its own."""
    drawn = plot_curves([Curve("one", [0, 1], [0.0, 1.0], colour_of(0))], "title", "unit")
    assert not re.findall(r"(?<!, )#[0-9a-f]{6}", re.sub(r"url\(#\w+\)|href=\"#\w+\"", "", drawn))
    assert "var(--series-1" in drawn and "var(--ink" in drawn and "#ffffff" not in drawn


def test_few_points_are_no_trend() -> None:
    """A line of a curve is a path with `fill: none`; axes and grid are paths too, so count what a curve adds."""

    def num_lines(num_points: int) -> int:
        steps = list(range(num_points))
        curve = Curve("one", steps, [float(step) for step in steps], colour=COLOURS[0])
        return plot_curves([curve], "title", "unit").count("fill: none; stroke: var(--series-1")

    assert [num_lines(n) for n in (1, 2, TREND_POINTS - 1)] == [0, 0, 0]
    assert num_lines(TREND_POINTS) == num_lines(300) == 1


def test_a_long_curve_is_thinned() -> None:
    steps = list(range(100_000))
    long = plot_curves([Curve("one", steps, [1.0] * len(steps))], "title", "unit")
    assert len(long) < 40_000 and MAX_POINTS < 1000


def test_models_have_looks_of_their_own() -> None:
    looks = [(colour_of(i), marker_of(i)) for i in range(49)]
    assert len(set(looks)) == len({look_of(i) for i in range(49)}) == 49
    assert len({colour for colour, _ in looks[: len(COLOURS)]}) == len(COLOURS)
