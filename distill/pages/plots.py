"""Plots as inline SVG in the style of the pages: colours and markers of models, curves, and Pareto fronts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.outside import read_scalars
from distill.pages.html import part
from distill.text import plot_label

# Okabe and Ito's colours, which people with any colour vision tell apart, without their yellow: too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
MARKERS = "os^DvPX"
INK, FAINT, AXIS = "#1c2733", "#d8dee6", "#8a94a0"
PLOT_WIDTH = 6.0  # inches: two plots fit side by side
MAX_POINTS = 250  # of a curve, so that the page of a long run stays small
FEW_POINTS = 12  # a curve of fewer points shows each of them
TREND_POINTS = 5  # fewer points are drawn as points: a line through them would look like a trend
# matplotlib writes these into an SVG by default. A page links to nothing, matplotlib's home page included.
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
PLOT_STYLE: Any = {  # keys of matplotlib.rcParams, which matplotlib types as literals
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": AXIS,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Curve:
    """One line of a plot: its title, steps and values. colour: None for matplotlib's next one."""

    title: str
    steps: list[int]
    values: list[float]
    colour: str | None = None


def colour_of(index: int) -> str:
    """Return the colour of the index-th model, the same on every plot."""
    return COLOURS[index % len(COLOURS)]


def marker_of(index: int) -> str:
    """Return the marker of the index-th model. No two of the first 49 models share both colour and marker."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other point is at or below in both coordinates.

    Returns:
        Their indices, from left to right. Of equal points the first counts.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def read_curves(scalars_file: Path, names: list[str]) -> list[Curve]:
    """Read the scalars that a run logged under `names` in its metrics.jsonl. Names that were never logged are left out.

    A run shorter than its logging interval has no file, and so no curve.
    """
    if not scalars_file.exists():
        return []
    rows = read_scalars(scalars_file)
    curves = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            curves.append(Curve(name, [int(step) for step, _ in points], [value for _, value in points]))
    return curves


def plot_curves(curves: Sequence[Curve], title: str, ylabel: str) -> Markup:
    """Plot curves over the training steps. Of a long curve, draw the means of equal pieces; of a short one, points."""
    with new_figure(PLOT_WIDTH, 3.2) as (figure, axes):
        for curve in curves:
            steps, values = _thinned(curve)
            (line,) = axes.plot(steps, values, label=plot_label(curve.title), linewidth=1.6, color=curve.colour)
            if len(steps) < FEW_POINTS:
                line.set(marker="o", markersize=3.5)
            if len(steps) < TREND_POINTS:
                line.set(linestyle="none", markersize=6)
        axes.set(title=plot_label(title), xlabel="step", ylabel=plot_label(ylabel))
        if len(curves) > 1:
            axes.legend(fontsize=8, frameon=False)
        return to_svg(figure)


@contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Make a figure in the style of the pages, in inches. Draw inside the context: the style ends with it."""
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure) -> Markup:
    """Return a figure as inline SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    svg = buffer.getvalue()
    return part("figure", Markup(svg[svg.index("<svg") :]))


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a curve, at most MAX_POINTS of each."""
    pieces = min(len(curve.steps), MAX_POINTS)
    steps, values = (np.array_split(np.asarray(v, np.float64), pieces) for v in (curve.steps, curve.values))
    return np.array([piece.mean() for piece in steps]), np.array([piece.mean() for piece in values])
