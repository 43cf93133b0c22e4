"""The plots of a comparison: quality against cost, scores by size, paired differences, and curves of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from distill.bench.models_report import pareto_indices
from distill.comparison.entries import Entry
from distill.comparison.join import Comparison, differences
from distill.comparison.tables import Column
from distill.evaluation.finished import HEADLINE_WORDS, ProtocolKey
from distill.pages.html import (
    COLOURS,
    INK,
    PLOT_WIDTH,
    Curve,
    Markup,
    axes,
    colour_of,
    marker_of,
    plot,
    read_curves,
    to_svg,
)
from distill.training.directory import SCALARS_FILE
from distill.training.record import Training

SIZES = {"miou": ("miou_large", "miou_medium", "miou_small"), "ap": ("ap_large", "ap_medium", "ap_small")}
SIZES["ar_1000"] = ("ar_large", "ar_medium", "ar_small")
BAR_SHARE = 0.8  # of the width of a group that its bars fill
LABEL_OFFSETS = ((7, 5), (7, -13), (-7, 5), (-7, -13), (0, 11), (0, -19), (7, 17), (-7, 17))  # points
CHARACTER, LINE = 5.6, 11.0  # points that a label takes, about
CURVES = (
    ("train/loss", "Training loss", "loss"),
    ("val/cosine", "Agreement with the teacher", "cosine"),
    ("val/box_miou", "Held-out masks from a box", "mIoU at low resolution"),
    ("val/point_miou", "Held-out masks from a click", "mIoU at low resolution"),
)
STAGES = {"feature": "Feature stage", "mask": "Mask stage"}


class Point(NamedTuple):
    """One model on a plot of quality against cost; number gives its colour, interval the 95 % of its quality."""

    number: int
    label: str
    cost: float
    quality: float
    interval: tuple[float, float] | None = None


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is at most as costly and better, or cheaper and as good. Cheapest first."""
    return [points[i] for i in pareto_indices([(point.cost, -point.quality) for point in points])]


def quality_plots(comparison: Comparison, protocol: ProtocolKey, costs: Sequence[Column]) -> Iterator[Markup]:
    """The headline of a protocol against each cost that is known, with the Pareto front."""
    found = comparison.evaluations(protocol)
    headline = found[0][1].headline
    for column in costs:
        points = [
            Point(i, entry.label, float(cost), float(score), evaluation.interval(headline))
            for i, entry in enumerate(comparison.entries)
            if (cost := column.cells[i].number) is not None
            and (evaluation := entry.evaluations.get(protocol)) is not None
            and (score := evaluation.metrics.get(headline)) is not None
        ]
        if points:
            yield _quality_plot(points, column.title, f"{HEADLINE_WORDS[headline]}, {protocol.title}")


def size_plot(comparison: Comparison, protocol: ProtocolKey) -> Markup | None:
    """Bars of the headline and of COCO's sizes, with 95 % intervals; None where an evaluation has no sizes."""
    found = comparison.evaluations(protocol)
    headline = found[0][1].headline
    if headline not in SIZES:
        return None
    keys = (headline, *SIZES[headline])
    with axes(max(PLOT_WIDTH, 1.4 + 0.28 * len(keys) * len(found)), 3.4) as (figure, ax):
        width = BAR_SHARE / len(found)
        for k, (entry, evaluation) in enumerate(found):
            values = [evaluation.metrics.get(key) for key in keys]
            heights = np.array([np.nan if value is None else value for value in values], np.float64)
            places = np.arange(len(keys)) + (k - (len(found) - 1) / 2) * width
            number = comparison.entries.index(entry)
            hatch = "///" if number >= len(COLOURS) else None  # where colours come again
            ax.bar(
                places, heights, 0.9 * width, color=colour_of(number), label=entry.label, hatch=hatch, edgecolor="white"
            )
            for place, key in zip(places, keys, strict=True):
                if (interval := evaluation.interval(key)) is not None:
                    ax.plot([place, place], interval, color=INK, linewidth=1.2)
        ax.set_xticks(range(len(keys)), ["all", "large", "medium", "small"])
        ax.set(ylabel=f"{HEADLINE_WORDS[headline]}, {protocol.title}", ylim=(0, 1))
        ax.grid(visible=False, axis="x")
        ax.legend(fontsize=8, frameon=False, ncols=min(4, len(found)), loc="upper center", bbox_to_anchor=(0.5, 1.2))
        return to_svg(figure)


def difference_plot(comparison: Comparison, protocol: ProtocolKey) -> Markup | None:
    """Paired differences to the reference with 95 % intervals; None where there is none."""
    found = differences(comparison, protocol)
    if not found:
        return None
    labels = [entry.label for entry in comparison.entries]
    with axes(PLOT_WIDTH, 1.1 + 0.36 * len(found)) as (figure, ax):
        ax.axvline(0, color="#8a94a0", linewidth=1)
        for row, (label, difference) in enumerate(found.items()):
            colour = colour_of(labels.index(label))
            ax.plot([difference.low, difference.high], [row, row], color=colour, linewidth=2.5)
            ax.plot(difference.mean, row, marker_of(labels.index(label)), color=colour, markersize=7)
        ax.set_yticks(range(len(found)), list(found))
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.set(title=protocol.title, xlabel=f"mIoU minus {comparison.reference.label}'s")
        ax.grid(visible=False, axis="y")
        return to_svg(figure)


def training_plots(comparison: Comparison) -> dict[str, list[Markup]]:
    """Curves of all entries over each other, by stage; a stage that two entries share is drawn once."""
    by_stage: dict[str, list[Markup]] = {}
    for kind, heading in STAGES.items():
        runs: dict[str, tuple[int, Entry, Training]] = {}
        for i, entry in enumerate(comparison.entries):
            for training in entry.trainings:
                if training.recipe["kind"] == kind:
                    runs.setdefault(str(training.run.resolve()), (i, entry, training))
        for name, title, unit in CURVES:
            curves = [
                Curve(entry.label, curve.steps, curve.values, colour_of(i))
                for i, entry, training in runs.values()
                for curve in read_curves(training.run / SCALARS_FILE, [name])
            ]
            if curves:
                by_stage.setdefault(heading, []).append(plot(curves, title, unit))
    return by_stage


def _quality_plot(points: Sequence[Point], xlabel: str, ylabel: str) -> Markup:
    with axes(PLOT_WIDTH, 3.9) as (figure, ax):
        front = pareto_front(points)
        ax.plot([p.cost for p in front], [p.quality for p in front], color="#8a94a0", linewidth=1.2, zorder=1)
        for point in points:
            faded = 1.0 if point in front else 0.55
            marker, colour = marker_of(point.number), colour_of(point.number)
            if point.interval is not None:
                ax.plot([point.cost, point.cost], point.interval, color=colour, linewidth=1.2, alpha=0.6 * faded)
            ax.plot(point.cost, point.quality, marker, color=colour, markersize=8, alpha=faded)
        costs = [p.cost for p in points]
        if max(costs) > 8 * min(costs) > 0:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            ax.locator_params(axis="x", nbins=6)
        ax.margins(0.18, 0.12)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        _label_points(ax, points)
        return to_svg(figure)


def _label_points(ax: Axes, points: Sequence[Point]) -> None:
    """Write each name where it covers the fewest others."""
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    per_point = 72 / ax.figure.dpi
    places = [tuple(ax.transData.transform((p.cost, p.quality)) * per_point) for p in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    frame = ax.get_window_extent()
    right = frame.x1 * per_point
    for point, (x, y) in zip(points, places, strict=True):
        width = CHARACTER * len(point.label)
        options = []
        for rank, (dx, dy) in enumerate(LABEL_OFFSETS):
            left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
            box = (left, y + dy, left + width, y + dy + LINE)
            outside = max(0.0, box[2] - right) + max(0.0, frame.x0 * per_point - box[0])
            options.append((sum(_shared(box, other) for other in taken) + LINE * outside, rank, box))
        _, rank, box = min(options)
        taken.append(box)
        dx, dy = LABEL_OFFSETS[rank]
        side = "left" if dx > 0 else "right" if dx < 0 else "center"
        ax.annotate(
            point.label, (point.cost, point.quality), (dx, dy), textcoords="offset points", ha=side, va="bottom", size=9
        )


def _shared(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Area that two rectangles share."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, width) * max(0.0, height)
