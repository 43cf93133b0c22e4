"""Plots as inline SVG in the style of the pages: colours and markers of models, and curves."""

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
from distill.pages.colours import LIGHT, NUM_SERIES, themed
from distill.pages.html import part
from distill.text import line, plot_label

COLOURS = tuple(LIGHT[f"series-{number}"] for number in range(1, NUM_SERIES + 1))
MARKERS = "os^DvPX"
# The same markers on a page: their paths in a box of 12 x 12.
MARKER_PATHS = {
    "o": "M6 1a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "s": "M1.5 1.5h9v9h-9z",
    "^": "M6 1l5.5 10h-11z",
    "D": "M6 .5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
    "v": "M6 11l-5.5-10h11z",
    "P": "M4 .5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
    "X": "M3.2 .5l2.8 2.8l2.8-2.8l2.7 2.7l-2.8 2.8l2.8 2.8l-2.7 2.7l-2.8-2.8l-2.8 2.8l-2.7-2.7l2.8-2.8l-2.8-2.8z",
}
PAGE, INK, FAINT, AXIS = LIGHT["page"], LIGHT["ink"], LIGHT["faint"], LIGHT["axis"]
PLOT_WIDTH = 5.3  # inches: two plots fit side by side, and one stays readable on a telephone
MAX_POINTS = 250  # of a curve, so that the page of a long run stays small
FEW_POINTS = 12  # a curve of fewer points shows each of them
TREND_POINTS = 5  # fewer points are drawn as points: a line through them would look like a trend
# matplotlib writes these into an SVG by default. A page links to nothing, matplotlib's home page included.
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
PLOT_STYLE: Any = {  # keys of matplotlib.rcParams, which matplotlib types as literals
    "svg.fonttype": "none",  # text stays text
    "figure.facecolor": "none",  # the page shows through
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
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


def look_of(index: int) -> tuple[str, str]:
    """Return how a page shows the index-th model: its marker's path, and the name of its colour."""
    return MARKER_PATHS[marker_of(index)], f"series-{index % len(COLOURS) + 1}"


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
    """Plot curves over the training steps. The page has the legend, which says whose colours they are.

    Of a long curve, draw the means of equal pieces; of a short one, points.
    """
    with new_figure(PLOT_WIDTH, 3.2) as (figure, axes):
        for curve in curves:
            steps, values = _thinned(curve)
            (drawn,) = axes.plot(steps, values, linewidth=1.6, color=curve.colour)
            if len(steps) < FEW_POINTS:
                drawn.set(marker="o", markersize=3.5)
            if len(steps) < TREND_POINTS:
                drawn.set(linestyle="none", markersize=6)
        axes.set(title=plot_label(title), xlabel="step", ylabel=plot_label(ylabel))
        return to_svg(figure, title)


@contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Make a figure in the style of the pages, in inches. Draw inside the context: the style ends with it."""
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure, title: str) -> Markup:
    """Return a figure as inline SVG, whose colours follow the page.

    Args:
        title: what a screen reader calls it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    svg = buffer.getvalue()
    drawn = themed(svg[svg.index("<svg") + len("<svg") :])
    return part("figure", Markup('<svg role="img" aria-label="{}"').format(line(title)) + Markup(drawn))


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a curve, at most MAX_POINTS of each."""
    pieces = min(len(curve.steps), MAX_POINTS)
    steps, values = (np.array_split(np.asarray(v, np.float64), pieces) for v in (curve.steps, curve.values))
    return np.array([piece.mean() for piece in steps]), np.array([piece.mean() for piece in values])
