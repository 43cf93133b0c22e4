"""The plots of a comparison: quality against cost, scores by size, paired differences, and curves of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from distill.bench.spread import Spread
from distill.comparison.conclusion import size_counts
from distill.comparison.join import Comparison, differences
from distill.comparison.noise import IsBelow, is_lower_score, latencies
from distill.comparison.tables import Column
from distill.evaluation.finished import CLICK_KEY, HEADLINE_WORDS, ProtocolKey
from distill.evaluation.scoring.metrics import SIZE_NAMES
from distill.evaluation.written import MOST_CLICKS
from distill.pages.fronts import Front, measured_front
from distill.pages.labels import Spot, shortened, write_labels
from distill.pages.plots import (
    AXIS,
    COLOURS,
    INK,
    PAGE,
    PLOT_WIDTH,
    TREND_POINTS,
    Curve,
    colour_of,
    marker_of,
    new_figure,
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
LATENCY = "latency"  # the beginning of its column's title
CURVES = (
    ("train/loss", "Training loss", "loss"),
    ("val/cosine", "Agreement with the teacher", "cosine"),
    ("val/box_miou", "Held-out masks from a box", "mIoU at low resolution"),
    ("val/point_miou", "Held-out masks from a click", "mIoU at low resolution"),
)
STAGES = {"feature": "Feature stage", "mask": "Mask stage"}


class Point(NamedTuple):
    """One model on a plot of quality against cost.

    number: of the model, which gives its colour and marker. cost: a latency with its noise, or a count, which has
    none. interval: the 95 % interval of its quality.
    """

    number: int
    label: str
    cost: Spread | float
    quality: float
    interval: tuple[float, float] | None = None

    @property
    def place(self) -> float:
        """Where the point stands on the axis of costs."""
        return self.cost.value if isinstance(self.cost, Spread) else self.cost

    @property
    def cost_range(self) -> tuple[float, float] | None:
        """The range of the cost; None for a count."""
        return (self.cost.low, self.cost.high) if isinstance(self.cost, Spread) else None


def quality_plots(comparison: Comparison, protocol: ProtocolKey, costs: Sequence[Column]) -> Iterator[Markup]:
    """Plot the headline of a protocol against each cost that is known, with the front of what is measurably better."""
    found = comparison.evaluations(protocol)
    headline = found[0][1].headline
    is_lower = is_lower_score(comparison, protocol)
    spreads = latencies(comparison)
    for column in costs:
        is_latency = column.title.startswith(LATENCY)
        points = [
            Point(
                i,
                model.label,
                spreads[model.label] if is_latency else float(cost),
                float(score),
                evaluation.interval(headline),
            )
            for i, model in enumerate(comparison.models)
            if (cost := column.cells[i].number) is not None
            and (evaluation := model.evaluations.get(protocol)) is not None
            and (score := evaluation.metrics.get(headline)) is not None
        ]
        if points:
            yield _quality_plot(points, is_lower, column.title, f"{HEADLINE_WORDS[headline]}, {protocol.full_title}")


def front_of(points: Sequence[Point], is_lower: IsBelow) -> Front:
    """Return the front of points: a lower cost counts if it leaves the noise, a higher quality as `is_lower` says."""

    def is_cheaper(first: int, second: int) -> bool:
        ours, theirs = points[first].cost, points[second].cost
        if isinstance(ours, Spread) and isinstance(theirs, Spread):
            return ours.is_below(theirs)
        return points[first].place < points[second].place

    return measured_front(
        len(points), is_cheaper, lambda first, second: is_lower(points[second].label, points[first].label)
    )


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
            bars = axes.bar(centres, heights, 0.9 * width, color=colour_of(number))
            for bar in bars:
                bar.set(hatch=hatch, edgecolor=PAGE)
            for centre, key in zip(centres, keys, strict=True):
                if (interval := evaluation.interval(key)) is not None:
                    axes.plot([centre, centre], interval, color=INK, linewidth=1.2)
        counts = size_counts(found[0][1])
        ticks = [("all", found[0][1].metrics.get("num_instances")), *((name, counts.get(name)) for name in SIZE_NAMES)]
        axes.set_xticks(range(len(keys)), [name if num is None else f"{name}\nn = {num:,}" for name, num in ticks])
        ylabel = f"{HEADLINE_WORDS[headline]}, {protocol.full_title}"
        axes.set(ylabel=plot_label(ylabel), ylim=(0, 1))
        axes.grid(visible=False, axis="x")
        return to_svg(figure, f"{ylabel}, by size")


def difference_plot(comparison: Comparison, protocol: ProtocolKey) -> Markup | None:
    """Plot paired differences to the reference with 95 % intervals. Return None if there are none."""
    found = differences(comparison, protocol)
    if not found:
        return None
    labels = [model.label for model in comparison.models]
    with new_figure(PLOT_WIDTH, 1.1 + 0.36 * len(found)) as (figure, axes):
        axes.axvline(0, color=AXIS, linewidth=1)
        for row, (label, difference) in enumerate(found.items()):
            opacity = 1.0 if difference.low > 0 or difference.high < 0 else 0.55
            number = labels.index(label)
            look: dict[str, Any] = {"color": colour_of(number), "alpha": opacity}
            axes.plot([difference.low, difference.high], [row, row], linewidth=2.5, **look)
            axes.plot(difference.mean, row, marker_of(number), markersize=7, **look)
        axes.set_yticks(range(len(found)), [plot_label(shortened(label)) for label in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        xlabel = f"mIoU minus {shortened(comparison.reference.label)}'s"
        axes.set(title=plot_label(protocol.full_title), xlabel=plot_label(xlabel))
        axes.grid(visible=False, axis="y")
        return to_svg(figure, f"{xlabel}, {protocol.full_title}")


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
            (line,) = axes.plot(clicks, scores, color=colour_of(number), linewidth=1.6)
            line.set(marker=marker_of(number), markersize=5)
            if len(keys) < TREND_POINTS:
                line.set(linestyle="none", markersize=7)
            for num, key in zip(clicks, keys, strict=True):
                if (interval := evaluation.interval(key)) is not None:
                    axes.plot([num, num], interval, color=colour_of(number), linewidth=1.2, alpha=0.5)
        axes.locator_params(axis="x", integer=True)
        axes.set(title=plot_label(protocol.full_title), xlabel="clicks", ylabel="mIoU", ylim=(0, 1))
        return to_svg(figure, f"mIoU by clicks, {protocol.full_title}")


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


def _quality_plot(points: Sequence[Point], is_lower: IsBelow, xlabel: str, ylabel: str) -> Markup:
    front = front_of(points, is_lower)
    with new_figure(PLOT_WIDTH, 3.9) as (figure, axes):
        # A staircase: below and to the right of it lies what some model beats. It says nothing between two models.
        if steps := [points[i] for i in front.joined]:
            costs, qualities = [p.place for p in steps], [p.quality for p in steps]
            axes.plot(costs, qualities, color=AXIS, linewidth=1.2, drawstyle="steps-post")
        for i, point in enumerate(points):
            opacity = 1.0 if i in front.members else 0.55
            marker, colour = marker_of(point.number), colour_of(point.number)
            whisker: dict[str, Any] = {"color": colour, "linewidth": 1.2, "alpha": 0.6 * opacity}
            if point.interval is not None:
                axes.plot([point.place] * 2, point.interval, **whisker)
            if point.cost_range is not None:
                axes.plot(point.cost_range, [point.quality] * 2, **whisker)
            axes.plot(point.place, point.quality, marker, color=colour, markersize=8, alpha=opacity)
        costs = [p.place for p in points]
        if max(costs) > LOG_RATIO * min(costs) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.locator_params(axis="x", nbins=6)
        axes.margins(0.18, 0.12)
        axes.set(xlabel=plot_label(xlabel), ylabel=plot_label(ylabel))
        spots = [Spot(p.place, p.quality, p.cost_range, p.interval) for p in points]
        write_labels(axes, [point.label for point in points], spots)
        return to_svg(figure, f"{ylabel} over {xlabel}")
