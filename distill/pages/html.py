"""Building blocks of self-contained HTML pages: sections, tables and plots as inline SVG. No outside link."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart, without their yellow: too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
MARKERS = "os^DvPX"
INK, FAINT = "#1c2733", "#d8dee6"
PLOT_WIDTH = 6.0  # inches: two stand side by side
MAX_POINTS = 250  # of a curve: a page of long runs stays small
NUMBER = re.compile(r"[-+\[]*\d[^a-z]*(<small>.*)?$")
NO_METADATA = dict.fromkeys(
    ("Creator", "Date", "Format", "Type")
)  # the page links to nothing, matplotlib's page included
PLOT_STYLE: Any = {  # matplotlib's keys
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a94a0",
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
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  margin: 2rem auto 4rem; max-width: 1180px; padding: 0 1.25rem; color: #1c2733; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .25rem; } p { max-width: 75ch; } .quiet { color: #4a5868; }
nav { margin: .75rem 0; } nav a { color: #005a8c; margin-right: 1rem; text-decoration: none; }
.notes { background: #fff6e0; border-left: 4px solid #e69f00; padding: .5rem 1rem; margin: 1rem 0; }
.notes ul { margin: 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; border-bottom: 1px solid #d8dee6; text-align: right; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid #8a94a0; line-height: 1.25; }
th:first-child, td:first-child { padding-left: 0; white-space: nowrap; }
.words { text-align: left; }
td small { display: block; color: #4a5868; font-size: 12px; white-space: nowrap; }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .5em; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: .5rem 0; } svg { max-width: 100%; height: auto; }
"""


class Markup(str):
    """HTML that is put into a page as it is; other text is escaped."""


@dataclass(frozen=True)
class Curve:
    """One line of a plot: steps and values, with its colour, or the next one."""

    title: str
    steps: list[int]
    values: list[float]
    colour: str | None = None


def colour_of(index: int) -> str:
    """The colour of the index-th model on every plot."""
    return COLOURS[index % len(COLOURS)]


def marker_of(index: int) -> str:
    """Its marker: no two of the first 49 models share both."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def dot(colour: str, text: str) -> Markup:
    """A text with its colour in front."""
    return Markup(f'<i class="dot" style="background:{colour}"></i>{html.escape(text)}')


def read_curves(metrics_file: Path, names: list[str]) -> list[Curve]:
    """The curves of a run's metrics.jsonl that were logged under `names`; those never logged are left out.

    A run shorter than its logging interval has no file, and so no curve.
    """
    if not metrics_file.exists():
        return []
    rows = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    curves = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            curves.append(Curve(name, [step for step, _ in points], [value for _, value in points]))
    return curves


def plot(curves: Sequence[Curve], title: str, ylabel: str) -> Markup:
    """Curves over the training steps; long ones as the means of equal pieces."""
    with axes(PLOT_WIDTH, 3.2) as (figure, ax):
        for curve in curves:
            steps, values = _thinned(curve)
            marker = "o" if len(steps) < 12 else None
            ax.plot(steps, values, label=curve.title, linewidth=1.6, color=curve.colour, marker=marker, markersize=3.5)
        ax.set(title=title, xlabel="step", ylabel=ylabel)
        if len(curves) > 1:
            ax.legend(fontsize=8, frameon=False)
        return to_svg(figure)


@contextmanager
def axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the page's style, in inches; what is drawn belongs inside the context."""
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure) -> Markup:
    """A figure as inline SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    svg = buffer.getvalue()
    return Markup(f"<figure>{svg[svg.index('<svg') :]}</figure>")


def plots(figures: Sequence[str]) -> Markup:
    """Figures side by side, as many as fit."""
    return Markup(f'<div class="plots">{"".join(figures)}</div>')


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table; cells are text, unless they are Markup. Columns without a number are aligned left."""
    kinds = [' class="words"' if not any(NUMBER.match(row[i]) for row in rows) else "" for i in range(len(header))]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{kind}>{_escaped(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head = line("th", header)
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return Markup(f'<div class="scroll"><table>{content}</table></div>')


def notes(lines: Sequence[str]) -> Markup:
    """What a reader must know, in a box of its own; nothing without a line."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return Markup(f'<div class="notes"><ul>{items}</ul></div>' if items else "")


def page(title: str, sections: Sequence[tuple[str, str]], *, lead: str = "", style: str = "") -> str:
    """A whole page.

    Args:
        sections: headings (text) and their HTML. lead: HTML below the title. style: further CSS.
    """
    links = "".join(f'<a href="#{_anchor(heading)}">{html.escape(heading)}</a>' for heading, _ in sections)
    body = "".join(
        f'<section id="{_anchor(heading)}"><h2>{html.escape(heading)}</h2>{content}</section>'
        for heading, content in sections
    )
    escaped = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{STYLE}{style}</style></head>'
        f"<body><h1>{escaped}</h1>{lead}<nav>{links}</nav>{body}</body></html>\n"
    )


def _escaped(cell: str) -> str:
    return cell if isinstance(cell, Markup) else html.escape(cell)


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, at most MAX_POINTS of each."""
    pieces = min(len(curve.steps), MAX_POINTS)
    steps, values = (np.array_split(np.asarray(v, np.float64), pieces) for v in (curve.steps, curve.values))
    return np.array([piece.mean() for piece in steps]), np.array([piece.mean() for piece in values])
