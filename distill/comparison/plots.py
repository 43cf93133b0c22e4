"""The plots of a comparison: quality against cost, scores by size, paired differences, and curves of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from distill.comparison.join import Comparison, differences
from distill.comparison.tables import Column
from distill.evaluation.finished import CLICK_KEY, HEADLINE_WORDS, ProtocolKey
from distill.evaluation.written import MOST_CLICKS
from distill.pages.plots import (
    AXIS,
    COLOURS,
    INK,
    PLOT_WIDTH,
    TREND_POINTS,
    Curve,
    colour_of,
    marker_of,
    new_figure,
    pareto_front,
    plot_curves,
    read_curves,
    to_svg,
)
from distill.text import plot_label
from distill.training.directory import SCALARS_FILE
from distill.training.record import Training

# Headline -> its metrics for COCO's sizes.
SIZES = {
    "miou": ("miou_large", "miou_medium", "miou_small"),
    "ap": ("ap_large", "ap_medium", "ap_small"),
    "ar_1000": ("ar_large", "ar_medium", "ar_small"),
}
BAR_SHARE = 0.8  # of the width of a group that its bars fill
LOG_RATIO = 8  # costs that differ by more stand on a logarithmic axis
LABEL_OFFSETS = ((7, 5), (7, -13), (-7, 5), (-7, -13), (0, 11), (0, -19), (7, 17), (-7, 17))  # points
CHARACTER_WIDTH, LINE_HEIGHT, MARKER_RADIUS = 5.6, 11.0, 5.0  # points that a label and a marker take, about
CURVES = (
    ("train/loss", "Training loss", "loss"),
    ("val/cosine", "Agreement with the teacher", "cosine"),
    ("val/box_miou", "Held-out masks from a box", "mIoU at low resolution"),
    ("val/point_miou", "Held-out masks from a click", "mIoU at low resolution"),
)
STAGES = {"feature": "Feature stage", "mask": "Mask stage"}

Box = tuple[float, float, float, float]  # left, bottom, right, top in points of the figure


class Point(NamedTuple):
    """One model on a plot of quality against cost.

    number: of the model, which gives its colour and marker. interval: the 95 % interval of its quality.
    """

    number: int
    label: str
    cost: float
    quality: float
    interval: tuple[float, float] | None = None


def best_points(points: Sequence[Point]) -> list[Point]:
    """Return the points of the Pareto front: no other model is as cheap and better, or cheaper and as good.

    The cheapest comes first.
    """
    return [points[i] for i in pareto_front([(point.cost, -point.quality) for point in points])]


def quality_plots(comparison: Comparison, protocol: ProtocolKey, costs: Sequence[Column]) -> Iterator[Markup]:
    """Plot the headline of a protocol against each cost that is known, with the Pareto front."""
    found = comparison.evaluations(protocol)
    headline = found[0][1].headline
    for column in costs:
        points = [
            Point(i, model.label, float(cost), float(score), evaluation.interval(headline))
            for i, model in enumerate(comparison.models)
            if (cost := column.cells[i].number) is not None
            and (evaluation := model.evaluations.get(protocol)) is not None
            and (score := evaluation.metrics.get(headline)) is not None
        ]
        if points:
            yield _quality_plot(points, column.title, f"{HEADLINE_WORDS[headline]}, {protocol.title}")


def size_plot(comparison: Comparison, protocol: ProtocolKey) -> Markup | None:
    """Plot the headline and its parts by COCO's sizes as bars with 95 % intervals.

    Returns:
        None if the headline has no sizes.
    """
    found = comparison.evaluations(protocol)
    headline = found[0][1].headline
    if headline not in SIZES:
        return None
    keys = (headline, *SIZES[headline])
    with new_figure(max(PLOT_WIDTH, 1.4 + 0.28 * len(keys) * len(found)), 3.4) as (figure, axes):
        width = BAR_SHARE / len(found)
        for k, (model, evaluation) in enumerate(found):
            values = [evaluation.metrics.get(key) for key in keys]
            heights = np.array([np.nan if value is None else value for value in values], np.float64)
            centres = np.arange(len(keys)) + (k - (len(found) - 1) / 2) * width
            number = comparison.models.index(model)
            hatch = "///" if number >= len(COLOURS) else None  # tells models of the same colour apart
            bars = axes.bar(centres, heights, 0.9 * width, color=colour_of(number), label=plot_label(model.label))
            for bar in bars:
                bar.set(hatch=hatch, edgecolor="white")
            for centre, key in zip(centres, keys, strict=True):
                if (interval := evaluation.interval(key)) is not None:
                    axes.plot([centre, centre], interval, color=INK, linewidth=1.2)
        axes.set_xticks(range(len(keys)), ["all", "large", "medium", "small"])
        axes.set(ylabel=plot_label(f"{HEADLINE_WORDS[headline]}, {protocol.title}"), ylim=(0, 1))
        axes.grid(visible=False, axis="x")
        axes.legend(fontsize=8, frameon=False, ncols=min(4, len(found)), loc="upper center", bbox_to_anchor=(0.5, 1.2))
        return to_svg(figure)


def difference_plot(comparison: Comparison, protocol: ProtocolKey) -> Markup | None:
    """Plot paired differences to the reference with 95 % intervals. Return None if there are none."""
    found = differences(comparison, protocol)
    if not found:
        return None
    labels = [model.label for model in comparison.models]
    with new_figure(PLOT_WIDTH, 1.1 + 0.36 * len(found)) as (figure, axes):
        axes.axvline(0, color=AXIS, linewidth=1)
        for row, (label, difference) in enumerate(found.items()):
            number = labels.index(label)
            axes.plot([difference.low, difference.high], [row, row], color=colour_of(number), linewidth=2.5)
            axes.plot(difference.mean, row, marker_of(number), color=colour_of(number), markersize=7)
        axes.set_yticks(range(len(found)), list(map(plot_label, found)))
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set(title=plot_label(protocol.title), xlabel=plot_label(f"mIoU minus {comparison.reference.label}'s"))
        axes.grid(visible=False, axis="y")
        return to_svg(figure)


def click_plot(comparison: Comparison, protocol: ProtocolKey) -> Markup | None:
    """Plot the mean IoU after each click with 95 % intervals. Return None if the protocol has no several clicks."""
    drawn = []
    for model, evaluation in comparison.evaluations(protocol):
        clicks = [i for i in range(MOST_CLICKS) if evaluation.metrics.get(f"{CLICK_KEY}{i}") is not None]
        if len(clicks) > 1:
            drawn.append((model, evaluation, clicks))
    if not drawn:
        return None
    with new_figure(PLOT_WIDTH, 3.6) as (figure, axes):
        for model, evaluation, clicks in drawn:
            number, keys = comparison.models.index(model), [f"{CLICK_KEY}{click}" for click in clicks]
            scores = [evaluation.metrics[key] for key in keys]
            (line,) = axes.plot(clicks, scores, color=colour_of(number), label=plot_label(model.label), linewidth=1.6)
            line.set(marker=marker_of(number), markersize=5)
            if len(keys) < TREND_POINTS:
                line.set(linestyle="none", markersize=7)
            for num, key in zip(clicks, keys, strict=True):
                if (interval := evaluation.interval(key)) is not None:
                    axes.plot([num, num], interval, color=colour_of(number), linewidth=1.2, alpha=0.5)
        axes.locator_params(axis="x", integer=True)
        axes.set(title=plot_label(protocol.title), xlabel="clicks", ylabel="mIoU", ylim=(0, 1))
        axes.legend(fontsize=8, frameon=False, loc="lower right")
        return to_svg(figure)


def training_plots(comparison: Comparison) -> dict[str, list[Markup]]:
    """Plot the curves of all models together, by stage. A stage that two models share is drawn once."""
    by_stage: dict[str, list[Markup]] = {}
    for kind, heading in STAGES.items():
        runs: dict[str, tuple[int, str, Training]] = {}
        for i, model in enumerate(comparison.models):
            for training in model.trainings:
                if training.recipe["kind"] == kind:
                    runs.setdefault(str(training.run.resolve()), (i, model.label, training))
        for name, title, unit in CURVES:
            curves = [
                Curve(label, curve.steps, curve.values, colour_of(i))
                for i, label, training in runs.values()
                for curve in read_curves(training.run / SCALARS_FILE, [name])
            ]
            if curves:
                by_stage.setdefault(heading, []).append(plot_curves(curves, title, unit))
    return by_stage


def _quality_plot(points: Sequence[Point], xlabel: str, ylabel: str) -> Markup:
    with new_figure(PLOT_WIDTH, 3.9) as (figure, axes):
        front = best_points(points)
        axes.plot([p.cost for p in front], [p.quality for p in front], color=AXIS, linewidth=1.2, zorder=1)
        for point in points:
            opacity = 1.0 if point in front else 0.55
            marker, colour = marker_of(point.number), colour_of(point.number)
            if point.interval is not None:
                axes.plot([point.cost, point.cost], point.interval, color=colour, linewidth=1.2, alpha=0.6 * opacity)
            axes.plot(point.cost, point.quality, marker, color=colour, markersize=8, alpha=opacity)
        costs = [p.cost for p in points]
        if max(costs) > LOG_RATIO * min(costs) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.locator_params(axis="x", nbins=6)
        axes.margins(0.18, 0.12)
        axes.set(xlabel=plot_label(xlabel), ylabel=plot_label(ylabel))
        _label_points(axes, points)
        return to_svg(figure)


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write each label where it covers the least of other labels and markers."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    per_point = 72 / axes.figure.dpi
    centres = [tuple(axes.transData.transform((p.cost, p.quality)) * per_point) for p in points]
    taken: list[Box] = [
        (x - MARKER_RADIUS, y - MARKER_RADIUS, x + MARKER_RADIUS, y + MARKER_RADIUS) for x, y in centres
    ]
    frame = axes.get_window_extent()
    right = frame.x1 * per_point
    for point, (x, y) in zip(points, centres, strict=True):
        width = CHARACTER_WIDTH * len(point.label)
        options = []
        for rank, (dx, dy) in enumerate(LABEL_OFFSETS):
            left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
            box = (left, y + dy, left + width, y + dy + LINE_HEIGHT)
            outside = max(0.0, box[2] - right) + max(0.0, frame.x0 * per_point - box[0])
            options.append((sum(_shared_area(box, other) for other in taken) + LINE_HEIGHT * outside, rank, box))
        _, rank, box = min(options)
        taken.append(box)
        dx, dy = LABEL_OFFSETS[rank]
        side = "left" if dx > 0 else "right" if dx < 0 else "center"
        axes.annotate(
            plot_label(point.label),
            (point.cost, point.quality),
            (dx, dy),
            textcoords="offset points",
            ha=side,
            va="bottom",
            size=9,
        )


def _shared_area(box: Box, other: Box) -> float:
    """Return the area that two rectangles share."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, width) * max(0.0, height)
