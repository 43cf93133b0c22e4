"""Tables of `distill bench models`, and a picture of size against speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.bench.spread import Spread, latency_spread
from distill.text import BILLION, MILLION, plot_label

if TYPE_CHECKING:
    from rich.table import Table

NUM_COLOURS, MARKERS = 10, "os^Dv"  # matplotlib's colours of lines; the markers of further models
NAME_WIDTH = 40  # columns; a longer name, such as a path, goes on in the next line

Found = Mapping[str, Any]


def tables(found: Found) -> list[Table]:
    """Return a table for each precision: each model's best form, beside the teacher and beside its own unfused form."""
    precisions = list(dict.fromkeys(run["precision"] for model in found["models"] for run in model["runs"]))
    return [_table(found, precision) for precision in precisions]


def _table(found: Found, precision: str) -> Table:
    from rich.table import Table

    teacher = found["teacher"]
    device = f"{found['device']}, {found['threads']} threads" if found["device"] == "cpu" else found["device"]
    table = Table(title=f"image encoders, {precision}, {device}: medians, fused where a model can be", box=None)
    table.add_column("model", overflow="fold", max_width=NAME_WIDTH)
    headings = ["input", "params\n(M)", "MACs\n(G)", "ms at\nbatch 1", "MB at\nbatch 1", "images\n/s", "at\nbatch"]
    for heading in [*headings, "x eager\nform", *(["x\nteacher"] if teacher else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    baseline = _throughput(found["models"][0], precision) if teacher else None
    for model in found["models"]:
        first, best = _first(model, precision), best_run(model, precision)
        eager = best_run(model, precision, fused=False)
        row = [
            str(model["image_size"]),
            f"{model['encoder_params'] / MILLION:.1f}",
            f"{model['macs'] / BILLION:.1f}",
            f"{first['latency_ms']:.1f}",
            f"{first['peak_memory_mb']:.0f}",
            f"{best['images_per_second']:.2f}",
            str(best["batch_size"]),
            f"{best['images_per_second'] / eager['images_per_second']:.2f}" if first["fused"] else "-",
        ]
        if baseline is not None:
            row.append(f"{best['images_per_second'] / baseline:.1f}")
        table.add_row(model["model"], *row)
    return table


def best_run(model: Found, precision: str, *, fused: bool | None = None) -> Found:
    """Return the run of the highest throughput, of both forms or of the one that is asked for."""
    runs = [run for run in model["runs"] if run["precision"] == precision and fused in (None, run["fused"])]
    return max(runs, key=lambda run: float(run["images_per_second"]))


def _throughput(model: Found, precision: str) -> float:
    return float(best_run(model, precision)["images_per_second"])


def _first(model: Found, precision: str) -> Found:
    """Return the run at batch 1: the fused one, if the model has one."""
    runs = [run for run in model["runs"] if run["precision"] == precision and run["batch_size"] == 1]
    return max(runs, key=lambda run: bool(run["fused"]))


def draw_pareto(found: Found, path: Path) -> None:
    """Draw encoder parameters over latency at batch 1, fused (filled) and eager (hollow), with the Pareto front.

    The front is of measured differences: latencies whose rounds overlap count as equal.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from distill.pages.fronts import measured_front
    from distill.pages.labels import Spot, shortened, write_labels

    precision = found["models"][0]["runs"][0]["precision"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    spots: list[Spot] = []
    spreads: list[Spread] = []
    sizes: list[float] = []
    marks: list[Line2D] = []
    for model in found["models"]:
        spread, size = latency_spread(_first(model, precision)), model["encoder_params"] / MILLION
        spreads.append(spread)
        sizes.append(size)
        marker = MARKERS[len(marks) // NUM_COLOURS % len(MARKERS)]
        eager = [run for run in model["runs"] if (run["precision"], run["batch_size"]) == (precision, 1)]
        (dots,) = axes.plot(spread.value, size, marker)
        marks.append(dots)
        axes.plot(
            [run["latency_ms"] for run in eager], [size] * len(eager), f"{marker}-", mfc="none", c=dots.get_color()
        )
        ends = [spread.low, spread.high, *(run["latency_ms"] for run in eager)]
        spots.append(Spot(spread.value, size, (min(ends), max(ends))))
        axes.plot(spread[1:3], [size] * 2, color=dots.get_color(), linewidth=1, alpha=0.6)
    front = measured_front(len(sizes), lambda i, j: spreads[i].is_below(spreads[j]), lambda i, j: sizes[i] < sizes[j])
    steps = [(spreads[i].value, sizes[i]) for i in front.joined]
    if steps:
        line = axes.step(*zip(*steps, strict=True), where="post", color="0.7", zorder=0)
        figure.legend(line, ["nothing is smaller and measurably faster"], loc="outside lower right", frameon=False)
    axes.set(xscale="log", yscale="log", xlabel=plot_label(f"ms, one image, {precision}, {found['device']}"))
    axes.set(ylabel="encoder parameters (M)", title="image encoders; hollow: batch norms and branches not fused")
    axes.margins(x=0.25, y=0.15)  # for the names
    names = [model["model"] for model in found["models"]]
    if not write_labels(axes, names, spots):
        figure.legend(marks, [plot_label(shortened(name)) for name in names], loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)
