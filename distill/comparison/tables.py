"""The numbers of a comparison as tables: in the terminal, as CSV with every metric, and as Markdown."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from distill.bench.spread import Spread
from distill.comparison.conclusion import counts_of, size_counts
from distill.comparison.join import Comparison, bench_run, differences, teachers
from distill.comparison.models import ComparedModel
from distill.comparison.noise import latencies
from distill.comparison.published_rows import HEADER, MARK, SECTION, PublishedRow, published_cells, score_in
from distill.evaluation.finished import HEADLINE_WORDS, FinishedEvaluation, ProtocolKey
from distill.text import BILLION, MILLION, csv_cell, markdown, markdown_table, print_tables
from distill.training.cost import Cost
from distill.training.record import lost_start

ABSENT = "–"
PIPE_WIDTH = 160  # columns of the main table, where there is no terminal
# Numbers of metrics.json that are no scores.
NOT_METRICS = (
    *("num_clicks", "num_images", "num_instances", "num_crowd", "num_empty", "num_small", "num_detections"),
    *("num_outside", "num_foreign", "max_images", "seconds", "photos_per_second"),
)


@dataclass(frozen=True)
class Cell:
    """One value: its number (None: not known), its text, and its range if it has one.

    interval: of a score its 95 % interval, of a latency the lowest and the highest round. digits: after their points.
    """

    number: float | str | None
    text: str
    interval: tuple[float, float] | None = None
    digits: int = 3

    @property
    def range_text(self) -> str:
        """The range in brackets; empty without one."""
        if self.interval is None:
            return ""
        return "[{:,.{digits}f}, {:,.{digits}f}]".format(*self.interval, digits=self.digits)

    def __str__(self) -> str:
        return f"{self.text} {self.range_text}".rstrip()


@dataclass(frozen=True)
class Column:
    """One column: a title with its unit, and one cell for each model and each published row below the models.

    counted: what its scores are the means of, such as "30 photos, 210 instances".
    """

    title: str
    cells: list[Cell]
    counted: str = ""

    @property
    def is_known(self) -> bool:
        """Whether any cell has a number."""
        return any(cell.number is not None for cell in self.cells)


NO_NUMBER = Cell(None, ABSENT)


def row_labels(comparison: Comparison) -> list[str]:
    """Return the labels of the rows: of the models, then of the published rows."""
    return [*(model.label for model in comparison.models), *(row.label for row in comparison.published)]


def main_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of the main table: scores, sizes, and what the training took."""
    return [*score_columns(comparison), *size_columns(comparison), *training_columns(comparison)]


def score_columns(comparison: Comparison) -> list[Column]:
    """Return a column for each protocol: its headline."""
    columns = []
    for protocol in comparison.protocols:
        found = {model.label: evaluation for model, evaluation in comparison.evaluations(protocol)}
        headline = next(iter(found.values())).headline
        cells = [_score(found.get(model.label), headline) for model in comparison.models]
        cells += [_published_score(row, protocol, comparison) for row in comparison.published]
        counted = counts_of(next(iter(found.values())))
        columns.append(Column(f"{HEADLINE_WORDS[headline]}, {protocol.full_title}", cells, counted))
    return columns


def metric_columns(comparison: Comparison, protocol: ProtocolKey) -> list[Column]:
    """Return a column for each score of metrics.json; its title is the key. Scores of a size say what they count."""
    found = {model.label: evaluation for model, evaluation in comparison.evaluations(protocol)}
    keys = dict.fromkeys(
        key
        for evaluation in found.values()
        for key, value in evaluation.metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in NOT_METRICS
    )
    first = next(iter(found.values()))
    headline, counts = first.headline, size_counts(first)
    columns = []
    for key in keys:
        cells = [_score(found.get(model.label), key) for model in comparison.models]
        for row in comparison.published:
            cells.append(_published_score(row, protocol, comparison) if key == headline else NO_NUMBER)
        num = counts.get(key.rpartition("_")[2])
        columns.append(Column(key, cells, "" if num is None else f"{num:,} instance{'s' if num != 1 else ''}"))
    return columns


def size_columns(comparison: Comparison) -> list[Column]:
    """Return columns of input size, parameters, MACs, latency and memory, as far as any is known."""
    setting = comparison.setting
    benches = [model.bench or {} for model in comparison.models]
    runs = [bench_run(model, setting) or {} for model in comparison.models]
    parameters = [_published_count(row, "parameters", "model") for row in comparison.published]
    macs = [_published_count(row, "macs", "encoder") for row in comparison.published]
    none = [NO_NUMBER] * len(comparison.published)
    found = latencies(comparison)
    columns = [
        Column("input (pixels)", [*(_size(model.image_size) for model in comparison.models), *none]),
        Column("parameters (M)", [*(_scaled(bench.get("params"), MILLION, 2) for bench in benches), *parameters]),
        Column("encoder GMACs", [*(_scaled(bench.get("macs"), BILLION, 2) for bench in benches), *macs]),
        Column(f"latency (ms, {setting})", [*(_latency(found.get(model.label)) for model in comparison.models), *none]),
        Column("peak memory (MB)", [*(_scaled(run.get("peak_memory_mb"), 1, 0) for run in runs), *none]),
    ]
    return [column for column in columns if column.is_known]


def training_columns(comparison: Comparison) -> list[Column]:
    """Return columns of the teacher, and of what all stages of the training took, as far as any is known."""
    teacher_of = teachers(comparison)
    none = [NO_NUMBER] * len(comparison.published)
    columns = [
        Column("teacher", [*(_text(teacher_of.get(model.label)) for model in comparison.models), *none]),
        Column("device hours", [*(_hours(model) for model in comparison.models), *none]),
        Column("photos seen", [*(_photos(model) for model in comparison.models), *none]),
    ]
    return [column for column in columns if column.is_known]


def difference_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the paired differences to the reference. There may be no rows."""
    rows = [
        [protocol.full_title, label, f"{d.mean:+.3f}", f"[{d.low:+.3f}, {d.high:+.3f}]", f"{d.num:,}"]
        for protocol in comparison.protocols
        for label, d in differences(comparison, protocol).items()
    ]
    header = ["prompt", "model", f"mIoU minus {comparison.reference.label}'s", "95 % interval", "instances"]
    return header, rows


def to_csv(comparison: Comparison) -> str:
    """Return every number of every model as CSV, one line a model. Intervals have columns of their own.

    With published rows, the column `origin` says of each line whether it is measured or published.
    """
    columns = [*size_columns(comparison), *training_columns(comparison)]
    for protocol in comparison.protocols:
        columns += [Column(f"{protocol.title}: {c.title}", c.cells) for c in metric_columns(comparison, protocol)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    titles = ["origin"] if comparison.published else []
    for column in columns:
        has_interval = any(cell.interval for cell in column.cells)
        titles += [column.title, *((f"{column.title} low", f"{column.title} high") if has_interval else ())]
    writer.writerow(map(csv_cell, ["model", *titles]))
    for i, label in enumerate(row_labels(comparison)):
        row: list[object] = [label]
        if comparison.published:
            row.append("measured" if i < len(comparison.models) else "published")
        for column in columns:
            cell = column.cells[i]
            row.append("" if cell.number is None else cell.number)
            if any(cell.interval for cell in column.cells):
                row += cell.interval or ("", "")
        writer.writerow(map(csv_cell, row))
    return buffer.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """Return the scores, the paired differences and the notes as Markdown."""
    columns = main_columns(comparison)
    rows = [[label, *(str(c.cells[i]) for c in columns)] for i, label in enumerate(row_labels(comparison))]
    parts = [markdown_table(["model", *(column.title for column in columns)], rows)]
    header, rows = difference_rows(comparison)
    if rows:
        parts.append(markdown_table(header, rows))
    if comparison.published:
        words = [i for i, title in enumerate(HEADER) if title != "published"]
        parts.append(f"{SECTION}:\n\n{markdown_table(HEADER, published_cells(comparison), words=words)}")
    if comparison.notes:
        parts.append("".join(f"- {markdown(note)}\n" for note in comparison.notes))
    return "\n".join(parts)


def print_table(comparison: Comparison) -> None:
    """Print the main table in the terminal. Intervals stand below their scores."""
    from rich.table import Table

    columns = main_columns(comparison)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for column in columns:
        is_text = any(isinstance(cell.number, str) for cell in column.cells)
        table.add_column(column.title.replace(" (", "\n("), justify="left" if is_text else "right", min_width=7)
    for i, label in enumerate(row_labels(comparison)):
        table.add_row(label, *(str(column.cells[i]).replace(" [", "\n[") for column in columns))
    print_tables(table, pipe_width=PIPE_WIDTH)


def _score(evaluation: FinishedEvaluation | None, key: str) -> Cell:
    value = None if evaluation is None else evaluation.metrics.get(key)
    if evaluation is None or isinstance(value, bool) or not isinstance(value, int | float):
        return NO_NUMBER  # text, where the file of another model has a number under this key
    return Cell(value, f"{value:,}" if isinstance(value, int) else f"{value:.3f}", evaluation.interval(key))


def _published_score(row: PublishedRow, protocol: ProtocolKey, comparison: Comparison) -> Cell:
    """Return the published score of a column in 0..1, marked as published."""
    score = score_in(row, protocol, comparison)
    return NO_NUMBER if score is None else Cell(float(score.value) / 100, f"{float(score.value) / 100:.3f} {MARK}")


def _published_count(row: PublishedRow, measure: str, of: str) -> Cell:
    count = row.model.count(measure, of)
    return NO_NUMBER if count is None else Cell(float(count.value), f"{count.value} {MARK}")


def _scaled(value: float | None, unit: float, digits: int) -> Cell:
    return NO_NUMBER if value is None else Cell(value / unit, f"{value / unit:,.{digits}f}")


def _size(pixels: int | None) -> Cell:
    return NO_NUMBER if pixels is None else Cell(pixels, str(pixels))


def _latency(spread: Spread | None) -> Cell:
    """Return a latency with the range of its rounds; without the range if that is assumed."""
    if spread is None:
        return NO_NUMBER
    return Cell(spread.value, f"{spread.value:,.1f}", spread[1:3] if spread.is_measured else None, digits=1)


def _text(value: str | None) -> Cell:
    return Cell(value, value if value is not None else ABSENT)


def _hours(model: ComparedModel) -> Cell:
    costs = _costs(model)
    hours = sum(cost.device_hours for cost in costs)
    return Cell(hours, f"{hours:,.2f}") if costs else NO_NUMBER


def _photos(model: ComparedModel) -> Cell:
    costs = _costs(model)
    photos = sum(cost.photos for cost in costs)
    return Cell(photos, f"{photos:,}") if costs else NO_NUMBER


def _costs(model: ComparedModel) -> list[Cost]:
    """Return the costs of all stages of a training, or none of them if one is not known: a part is no cost."""
    costs = [training.cost for training in model.trainings if training.cost is not None]
    is_complete = len(costs) == len(model.trainings) and lost_start(model.trainings) is None
    return costs if is_complete else []
