"""The page of a comparison: everything that was joined, in one file that opens from disk."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from distill.comparison.entries import Entry
from distill.comparison.gallery import gallery_rows
from distill.comparison.join import Comparison
from distill.comparison.plots import difference_plot, quality_plots, size_plot, training_plots
from distill.comparison.tables import (
    Cell,
    difference_rows,
    metric_columns,
    score_columns,
    size_columns,
    training_columns,
)
from distill.errors import DistillError
from distill.pages import mask_gallery as gallery_module
from distill.pages.html import Markup, colour_of, dot, notes, page, plots, table
from distill.pages.mask_gallery import gallery, gallery_line

GALLERY_ROWS = 30  # for each protocol; a row takes about 20 kB
COSTS = ("latency", "encoder GMACs")  # columns that quality is plotted against


def render(
    comparison: Comparison,
    *,
    title: str = "Comparison",
    images: Path | None = None,
    annotations: Path | None = None,
    num_rows: int = GALLERY_ROWS,
    extra: Sequence[tuple[str, str]] = (),
) -> str:
    """The whole page; `extra` sections come last. What hinders the gallery becomes one of the notes.

    Args:
        images, annotations: where the photos of the gallery are; None: where the evaluations read them.
    """
    shown = _gallery(comparison, images, annotations, num_rows)
    sections = [
        ("Scores", _scores(comparison)),
        ("Quality and cost", _quality(comparison)),
        ("By size", _by_size(comparison)),
        ("Every score", _every_score(comparison)),
        (f"Differences to {comparison.reference.label}", _differences(comparison)),
        ("Training", _training(comparison)),
        ("Gallery", shown),
        ("How this was measured", _measured(comparison)),
        *extra,
    ]
    lead = f'<p class="quiet">{html.escape(_summary(comparison))}</p>{notes(comparison.notes)}'
    return page(title, [s for s in sections if s[1]], lead=lead, style=gallery_module.STYLE)


def _scores(comparison: Comparison) -> str:
    columns = [*score_columns(comparison), *size_columns(comparison), *training_columns(comparison)]
    rows = [[_name(comparison, e), *(_cell(c.cells[i]) for c in columns)] for i, e in enumerate(comparison.entries)]
    lines = [
        "In brackets: 95 % intervals, by resampling photos."
        if any(cell.interval for column in columns for cell in column.cells)
        else ""
    ]
    return table(["model", *(column.title for column in columns)], rows) + _quiet(lines)


def _quality(comparison: Comparison) -> str:
    costs = [column for start in COSTS for column in size_columns(comparison) if column.title.startswith(start)]
    figures = [figure for protocol in comparison.protocols for figure in quality_plots(comparison, protocol, costs)]
    explained = _quiet(["The line joins the models that no other beats in both; those behind it are pale."])
    return plots(figures) + explained if figures else ""


def _by_size(comparison: Comparison) -> str:
    figures = [figure for protocol in comparison.protocols if (figure := size_plot(comparison, protocol))]
    return plots(figures) + _quiet(["COCO's sizes: small below 32² pixels, large from 96² on."]) if figures else ""


def _every_score(comparison: Comparison) -> str:
    parts = []
    for protocol in comparison.protocols:
        columns = metric_columns(comparison, protocol)
        rows = [
            [_name(comparison, entry), *(_cell(column.cells[i]) for column in columns)]
            for i, entry in enumerate(comparison.entries)
            if protocol in entry.evaluations
        ]
        words = [_words(column.title) for column in columns]
        parts.append(f"<h3>{html.escape(protocol.title)}</h3>{table(['model', *words], rows)}")
    return "".join(parts)


def _differences(comparison: Comparison) -> str:
    header, rows = difference_rows(comparison)
    if not rows:
        return ""
    figures = [figure for protocol in comparison.protocols if (figure := difference_plot(comparison, protocol))]
    explained = _quiet(
        ["Both models answered the same instances, so what makes a photo hard for both cancels out."]
        + ["An interval that leaves out 0 is a difference that other photos of this sort would show too."]
    )
    return plots(figures) + table(header, rows) + explained


def _training(comparison: Comparison) -> str:
    rows = [
        [_name(comparison, entry), str(training.recipe["kind"]), str(training.run)]
        + (
            [f"{cost.seconds:,.0f}", f"{cost.steps:,}", f"{cost.photos:,}", f"{cost.devices} x {cost.device}"]
            if (cost := training.cost) is not None
            else ["not recorded", "", "", ""]
        )
        for entry in comparison.entries
        for training in entry.trainings
    ]
    header = ["model", "stage", "run", "seconds", "steps", "photos seen", "devices"]
    figures = "".join(
        f"<h3>{html.escape(stage)}</h3>{plots(of_stage)}" for stage, of_stage in training_plots(comparison).items()
    )
    return table(header, rows) + figures if rows else ""


def _gallery(comparison: Comparison, images: Path | None, annotations: Path | None, num_rows: int) -> str:
    """The gallery of the protocols with truths; empty, with a note, where something that it needs is missing."""
    lines: list[Markup] = []
    groups, models = [], dict[str, None]()
    for protocol in comparison.protocols:
        found = comparison.evaluations(protocol)
        if found[0][1].headline != "miou" or not found[0][1].instances.keys:
            continue
        try:
            rows = gallery_rows(comparison, protocol, num_rows=num_rows, images=images, annotations=annotations)
            lines += [gallery_line(row) for row in rows]
        except DistillError as error:
            comparison.notes.append(f"no gallery of {protocol.title}: {error}")
            continue
        groups.append(protocol.title)
        models.update(dict.fromkeys(entry.label for entry, _ in found))
    return gallery(lines, list(models), groups) if lines else ""


def _measured(comparison: Comparison) -> str:
    rows = []
    for protocol in comparison.protocols:
        for entry, evaluation in comparison.evaluations(protocol):
            metrics = evaluation.metrics
            counts = [
                f"{metrics[key]:,}" if metrics.get(key) is not None else "" for key in ("num_images", "num_instances")
            ]
            policy = str(protocol.multimask or "")
            rows.append(
                [_name(comparison, entry), protocol.title, policy, *counts, str(metrics.get("annotations", ""))]
            )
    parts = [table(["model", "prompt", "mask", "photos", "instances", "annotations"], rows)] if rows else []
    if comparison.setting is not None:
        machine = ", ".join(f"{key} {value}" for key, value in comparison.machine.items() if value is not None)
        parts.append(_quiet([f"Latency: {comparison.setting}. Machine: {machine or 'not recorded'}."]))
    return "".join(parts)


def _summary(comparison: Comparison) -> str:
    counts = [
        evaluation.metrics.get("num_images") or 0
        for entry in comparison.entries
        for evaluation in entry.evaluations.values()
    ]
    num_models = len(comparison.entries)
    photos = f" on {max(counts):,} photos" if any(counts) else ""
    words = ", ".join(protocol.title for protocol in comparison.protocols)
    return f"{num_models} model{'s' if num_models != 1 else ''}{photos}{': ' + words if words else ''}."


def _name(comparison: Comparison, entry: Entry) -> Markup:
    return dot(colour_of(comparison.entries.index(entry)), entry.label)


def _cell(cell: Cell) -> Markup:
    interval = f"<small>[{cell.interval[0]:.3f}, {cell.interval[1]:.3f}]</small>" if cell.interval else ""
    return Markup(html.escape(cell.text) + interval)


def _words(key: str) -> str:
    """A key of metrics.json as a heading."""
    names = {"miou": "mIoU", "iou": "IoU", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar": "AR", "map": "mean AP"}
    return " ".join(names.get(word, word) for word in key.split("_"))


def _quiet(lines: Sequence[str]) -> Markup:
    text = " ".join(line for line in lines if line)
    return Markup(f'<p class="quiet">{html.escape(text)}</p>' if text else "")
