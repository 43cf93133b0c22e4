"""The page of a comparison: all that is known of its models, in one file that opens from disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from markupsafe import Markup

from distill.bench.spread import ASSUMED_SPREAD
from distill.comparison.conclusion import by_size, circumstances, conclusion, counts_of, machine_words
from distill.comparison.gallery import gallery_rows
from distill.comparison.join import Comparison
from distill.comparison.models import ComparedModel
from distill.comparison.noise import latencies, shared_encoders
from distill.comparison.plots import click_plot, difference_plot, quality_plots, size_plot, training_plots
from distill.comparison.published_rows import HEADER, MARK, SECTION, published_cells
from distill.comparison.tables import Cell, Column, difference_rows, main_columns, metric_columns, size_columns
from distill.comparison.words import DEFINITIONS, INTERVAL, explained
from distill.errors import DistillError
from distill.evaluation.finished import CLICK_KEY, POLICIES
from distill.pages import mask_gallery
from distill.pages.html import NOTHING, figures, joined, notes, page, part, remark, table, term
from distill.pages.plots import look_of
from distill.training.record import lost_start

GALLERY_ROWS = 30  # for each protocol; a row takes about 20 kB
COSTS = ("latency", "encoder GMACs")  # beginnings of the columns that quality is plotted against
NOC = "noc"  # and an IoU in %: the keys of the numbers of clicks in metrics.json
# Parts of a key of metrics.json, as a heading has them.
WORDS = {"miou": "mIoU", "iou": "IoU", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar": "AR", "map": "mean AP"}


def render_page(
    comparison: Comparison,
    *,
    title: str = "Comparison",
    images: Path | None = None,
    annotations: Path | None = None,
    num_rows: int = GALLERY_ROWS,
    lead: Markup = NOTHING,
    extra: Sequence[tuple[str, Markup]] = (),
) -> str:
    """Return the page, which begins with its conclusion.

    A gallery that cannot be shown becomes one of the comparison's notes.

    Args:
        images, annotations: where the photos of the gallery are; None: where the evaluations read them.
        num_rows: the most instances of each protocol in the gallery.
        lead: what stands below the conclusion.
        extra: headings and contents of further sections, which come last.
    """
    gallery = _gallery(comparison, images, annotations, num_rows)  # first, because it may add a note
    sections = [
        ("Scores", _scores(comparison)),
        ("Quality and cost", _quality(comparison)),
        ("By size", _by_size(comparison)),
        ("By clicks", _by_clicks(comparison)),
        ("Every score", _every_score(comparison)),
        (f"Differences to {comparison.reference.label}", _differences(comparison)),
        ("Training", _training(comparison)),
        ("Gallery", gallery),
        (SECTION, table(HEADER, published_cells(comparison)) if comparison.published else NOTHING),
        ("How this was measured", _measured(comparison)),
        *extra,
    ]
    words = part("circumstances", list(map(explained, circumstances(comparison, date.today()))))
    head = part("lead", conclusion(comparison)) + words + lead + remark(_summary(comparison)) + notes(comparison.notes)
    shown = [(heading, content) for heading, content in sections if content]
    return page(title, shown, lead=head, styles=[mask_gallery.STYLE], definitions=DEFINITIONS)


def _scores(comparison: Comparison) -> Markup:
    columns = main_columns(comparison)
    names = [*(_name(comparison, model) for model in comparison.models), *(row.label for row in comparison.published)]
    rows = [[name, *(_score(column.cells[i]) for column in columns)] for i, name in enumerate(names)]
    html = table(["model", *map(_heading, columns)], rows, title="scores and costs")
    if any(cell.interval for column in columns for cell in column.cells):
        below = "In small brackets: of a score its {}, of a latency its lowest and highest round."
        html += part("remark", Markup(below).format(term("95 % interval", name=INTERVAL)))
    if comparison.published:
        html += remark(f"{MARK}: as the source states it, without an interval; not measured here.")
    return html


def _quality(comparison: Comparison) -> Markup:
    costs = [column for start in COSTS for column in size_columns(comparison) if column.title.startswith(start)]
    drawn = [figure for protocol in comparison.protocols for figure in quality_plots(comparison, protocol, costs)]
    if not drawn:
        return NOTHING
    explained_by = (
        "The line joins models of which each costs measurably more than the one before and is measurably better. A "
        "pale model is behind another one: measurably worse in one measure, and not measurably better in the other. "
        "Whiskers: 95 % intervals of the scores, and the range of the latency's rounds; the interval of the paired "
        "difference decides whether a score is better."
    )
    return _legend(comparison) + figures(drawn) + remark(explained_by) + remark(_noise(comparison))


def _noise(comparison: Comparison) -> str:
    """Say what is not as measured: encoders that share their latency, and a spread that is assumed."""
    words = [
        f"{', '.join(labels)} have the same encoder, so what was measured of each counts for all: no difference."
        for labels in shared_encoders(comparison)
    ]
    assumed = [label for label, spread in latencies(comparison).items() if not spread.is_measured]
    if assumed:
        words.append(f"The latency of {', '.join(assumed)} has no measured spread; ±{ASSUMED_SPREAD:.0%} is assumed.")
    return " ".join(words)


def _by_size(comparison: Comparison) -> Markup:
    drawn = [figure for protocol in comparison.protocols if (figure := size_plot(comparison, protocol))]
    sizes = remark(
        "COCO's sizes: small below 32² pixels, large from 96² on. "
        "By EfficientViT-SAM's rules, an object at a bound belongs to both sizes."
    )
    return _legend(comparison) + figures(drawn) + sizes if drawn else NOTHING


def _by_clicks(comparison: Comparison) -> Markup:
    """Return the curves of mIoU by clicks, and a table of the clicks to an IoU for each protocol that counts them."""
    drawn = [plot for protocol in comparison.protocols if (plot := click_plot(comparison, protocol))]
    parts = [_legend(comparison), figures(drawn)] if drawn else []
    for protocol in comparison.protocols:
        columns = [c for c in metric_columns(comparison, protocol) if c.title.startswith(NOC)]
        if columns:
            rows = [
                [_name(comparison, model), *(_score(column.cells[i]) for column in columns)]
                for i, model in enumerate(comparison.models)
                if protocol in model.evaluations
            ]
            header = ["model", *(explained(_noc_words(column)) for column in columns)]
            parts += [part("heading", protocol.full_title), table(header, rows, title=f"clicks, {protocol.full_title}")]
    if not parts:
        return NOTHING
    what = "The masks after each click, with 95 % intervals. Number of clicks to an IoU: fewer are better."
    return joined([*parts, remark(what)])


def _noc_words(column: Column) -> str:
    """Return the heading of a number of clicks, as of `noc85` and `noc85_limit`."""
    target, _, is_limit = column.title.removeprefix(NOC).partition("_")
    return f"no fewer than the limit, {target} % IoU" if is_limit else f"clicks to {target} % IoU"


def _every_score(comparison: Comparison) -> Markup:
    parts = []
    for protocol in comparison.protocols:
        columns = [c for c in metric_columns(comparison, protocol) if not c.title.startswith((CLICK_KEY, NOC))]
        rows = [
            [_name(comparison, model), *(_score(column.cells[i]) for column in columns)]
            for i, model in enumerate(comparison.models)
            if protocol in model.evaluations
        ]
        words = [" ".join(WORDS.get(word, word) for word in column.title.split("_")) for column in columns]
        header = [part("column_heading", explained(w), c.counted) for w, c in zip(words, columns, strict=True)]
        counted = remark(counts_of(comparison.evaluations(protocol)[0][1]))
        title = protocol.full_title
        parts += [part("heading", title), counted, table(["model", *header], rows, title=f"every score, {title}")]
    return joined(parts)


def _differences(comparison: Comparison) -> Markup:
    header, rows = difference_rows(comparison)
    if not rows:
        return NOTHING
    drawn = [figure for protocol in comparison.protocols if (figure := difference_plot(comparison, protocol))]
    what = remark(
        "Both models answered the same instances, so what makes a photo hard for both cancels out. "
        "An interval that leaves out 0 is a difference that other photos of this sort would show too; one that holds 0 "
        "is drawn pale, and is no measured difference."
    )
    linked = [term("95 % interval", name=INTERVAL) if title == "95 % interval" else title for title in header]
    return figures(drawn) + table(linked, rows, title="paired differences") + what


def _training(comparison: Comparison) -> Markup:
    rows = []
    for model in comparison.models:
        if (lost := lost_start(model.trainings)) is not None:
            rows.append([_name(comparison, model), "before", lost, "no record is left", "", "", ""])
        for training in model.trainings:
            took = ["not recorded", "", "", ""]
            if (cost := training.cost) is not None:
                devices = f"{cost.devices} x {cost.device}"
                took = [f"{cost.seconds:,.0f}", f"{cost.steps:,}", f"{cost.photos:,}", devices]
            rows.append([_name(comparison, model), str(training.recipe["kind"]), str(training.run), *took])
    if not rows:
        return NOTHING
    header = ["model", "stage", "run", "seconds", "steps", "photos seen", "devices"]
    parts = [table(header, rows, title="trainings")]
    plots = training_plots(comparison)
    if plots:
        parts.append(_legend(comparison))
    for stage, drawn in plots.items():
        parts += [part("heading", stage), figures(drawn)]
    return joined(parts)


def _gallery(comparison: Comparison, images: Path | None, annotations: Path | None, num_rows: int) -> Markup:
    """Return the gallery of the protocols with truths. Where something that it needs is missing, add a note."""
    rows: list[Markup] = []
    prompt_titles, labels = [], dict[str, None]()
    for protocol in comparison.protocols:
        found = comparison.evaluations(protocol)
        if found[0][1].headline != "miou" or not found[0][1].instances.keys:
            continue
        try:
            wanted = gallery_rows(comparison, protocol, num_rows=num_rows, images=images, annotations=annotations)
            rows += [mask_gallery.render_row(row) for row in wanted]
        except DistillError as error:
            comparison.notes.append(f"no gallery of {protocol.full_title}: {error}")
            continue
        prompt_titles.append(protocol.full_title)
        labels.update(dict.fromkeys(model.label for model, _ in found))
    return mask_gallery.render_gallery(rows, list(labels), prompt_titles) if rows else NOTHING


def _measured(comparison: Comparison) -> Markup:
    rows = []
    for protocol in comparison.protocols:
        for model, evaluation in comparison.evaluations(protocol):
            metrics = evaluation.metrics
            counts = [
                f"{metrics[key]:,}" if metrics.get(key) is not None else "" for key in ("num_images", "num_instances")
            ]
            counts.append(by_size(evaluation))
            policy = explained(POLICIES.get(str(protocol.multimask), str(protocol.multimask or "")))
            found = [protocol.words, policy, *counts, str(metrics.get("annotations", "")), metrics.get("date") or ""]
            rows.append([_name(comparison, model), *found])
    header = ["model", "prompt", "mask", "photos", "instances", "by size", "annotations", "date"]
    parts = [table(header, rows, title="how this was measured")] if rows else []
    if comparison.setting is not None:
        machine = machine_words(comparison.machine)
        parts.append(remark(f"Latency: {comparison.setting}. Machine: {machine or 'not recorded'}."))
    return joined(parts)


def _summary(comparison: Comparison) -> str:
    counts = [
        evaluation.metrics.get("num_images") or 0
        for model in comparison.models
        for evaluation in model.evaluations.values()
    ]
    num_models = len(comparison.models)
    photos = f" on {max(counts):,} photos" if any(counts) else ""
    words = "; ".join(protocol.full_title for protocol in comparison.protocols)
    beside = f" Below them: {len(comparison.published)} published." if comparison.published else ""
    return f"{num_models} model{'s' if num_models != 1 else ''}{photos}{': ' + words if words else ''}.{beside}"


def _name(comparison: Comparison, model: ComparedModel) -> Markup:
    return part("model_name", model.label, look_of(comparison.models.index(model)))


def _legend(comparison: Comparison) -> Markup:
    return part("legend", [(model.label, look_of(i)) for i, model in enumerate(comparison.models)])


def _heading(column: Column) -> Markup:
    return part("column_heading", explained(column.title), column.counted)


def _score(cell: Cell) -> Markup:
    return part("score", cell.text, cell.range_text)
