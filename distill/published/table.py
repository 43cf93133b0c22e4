"""The standing table: a row for each published number, with ours beside it, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from distill.published.measured import Throughput, agrees, count_student
from distill.published.numbers import (
    UNITS,
    WORDS,
    Count,
    Protocol,
    PublishedModel,
    PublishedNumbers,
    Score,
    Source,
    Speed,
)
from distill.students import STUDENTS
from distill.text import csv_cell, markdown, markdown_table

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "–"
HERE = "measured here"  # the source of what this machine measured
SECTIONS = {
    "Scores": ("ap", "miou"),
    "Parameters and MACs": ("parameters", "macs"),
    "Speed": ("throughput", "latency"),
}
# Section -> its columns. Those of numbers are aligned right.
COLUMNS = {
    "Scores": ("model", "measure", "published", "prompt", "boxes", "mask", "photos", "source"),
    "Parameters and MACs": ("model", "measure", "published", "here", "agree", "source"),
    "Speed": ("model", "measure", "published", "here", "on", "source"),
}
NUMBER_COLUMNS = ("published", "here")
DIGITS = 4  # significant ones of our own numbers


@dataclass(frozen=True)
class Row:
    """One number of the table; None and empty texts stand for what does not apply.

    published, here: in `unit`. published: None for what was measured here alone.
    of: the part that was counted. prompt, boxes, mask, photos: the protocol of a score.
    on: the device of a speed, its precision and further conditions.
    agrees: whether the two numbers are the same within the tolerance. note: why not, or what else to know.
    command: measures the number where weights and data are there.
    """

    model: str
    measure: str
    published: Decimal | None
    here: Decimal | None
    unit: str
    source: str
    url: str = ""
    of: str = ""
    prompt: str = ""
    boxes: str = ""
    mask: str = ""
    photos: str = ""
    on: str = ""
    agrees: bool | None = None
    note: str = ""
    command: str = ""


def table_rows(
    numbers: PublishedNumbers,
    models: Sequence[PublishedModel],
    *,
    counted: Collection[str] = (),
    throughput: Throughput | None = None,
) -> list[Row]:
    """Return the rows of some models: the published numbers in their order, then what was measured here alone.

    Args:
        counted: the measures to count here: parameters, macs.
        throughput: of this machine; None if it was not measured.
    """
    rows = []
    for model in models:
        for value in model.values:
            source = numbers.sources[value.source]
            if isinstance(value, Score):
                rows.append(_score_row(model, value, numbers.protocols[value.protocol], source))
            elif isinstance(value, Count):
                rows.append(_count_row(model, value, source, is_counted=value.measure in counted))
            else:
                rows.append(_speed_row(model, value, source))
        if throughput is not None and model.student in throughput.by_student:
            here = Decimal(throughput.by_student[model.student])
            on = f"{throughput.machine}, fp32, torch, batch 1, encoder alone"
            unit = UNITS["throughput"]
            command = shlex.join(["distill", "bench", "models", model.student])
            rows.append(Row(model.name, "throughput", None, here, unit, HERE, on=on, command=command))
    return rows


def evaluate_command(model: PublishedModel, protocol: Protocol) -> str:
    """Return the command that measures a score by a protocol here, or nothing if there is none.

    There is none without a released file, without photos in the catalogue, or for a decoder that is not SAM's.
    """
    if model.weights is None or model.student is None or not protocol.recipe or protocol.split is None:
        return ""
    if STUDENTS[model.student].own_decoder:
        return ""
    name = [] if model.weights.endswith(".safetensors") else ["--name", model.student]
    images = f"data.images={protocol.image_set}"
    words = ["evaluate", model.weights, protocol.recipe, *name, images, *protocol.options, "run=OUT"]
    return shlex.join(["distill", *words])


def to_json(rows: Sequence[Row], models: Sequence[PublishedModel]) -> str:
    """Return the rows and what is known of differences between sources as one JSON object."""
    why = {model.name: model.why for model in models if model.why}
    return json.dumps({"rows": [_plain(row) for row in rows], "why": why}, indent=1, ensure_ascii=False)


def to_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, one line each."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in _plain(row).items()} for row in rows)
    return buffer.getvalue()


def to_markdown(rows: Sequence[Row], models: Sequence[PublishedModel]) -> str:
    """Return a table for scores, counts and speeds, the differences between sources, commands, and sources."""
    parts = []
    for section, columns, cells in _sections(rows):
        words = [i for i, column in enumerate(columns) if column not in NUMBER_COLUMNS]
        parts.append(f"## {section}\n\n{markdown_table(columns, cells, words=words)}")
    why = [f"- **{markdown(model.title)}**: {markdown(model.why)}" for model in models if model.why]
    if why:
        parts.append("## Where sources disagree\n\n" + "\n".join(why) + "\n")
    if commands := command_lines(rows, models):
        parts.append("## Commands\n\n```bash\n" + "\n".join(commands) + "\n```\n")
    links = dict.fromkeys(f"- [{markdown(row.source)}]({row.url})" for row in rows if row.url)
    parts.append("## Sources\n\n" + "\n".join(links) + "\n")
    return "\n".join(parts)


def to_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table for scores, counts and speeds for the terminal."""
    from rich.table import Table

    tables = []
    for section, columns, cells in _sections(rows):
        table = Table(title=section, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in NUMBER_COLUMNS else "left", overflow="fold")
        for line in cells:
            table.add_row(*line)
        tables.append(table)
    return tables


def command_lines(rows: Sequence[Row], models: Sequence[PublishedModel]) -> list[str]:
    """Return the commands that measure the scores of the rows, each once, as a shell takes them.

    A comment above says what still differs from the published protocol. Weights are prepared first.
    """
    lines: list[str] = []
    for model in models:
        scores = [row for row in rows if row.model == model.name and row.measure in SECTIONS["Scores"] and row.command]
        notes = {row.command: row.note for row in scores}
        lines += [model.prepare] if model.prepare and notes else []
        for command, note in notes.items():
            lines += [f"# {note}", command] if note else [command]
    return lines


def _score_row(model: PublishedModel, score: Score, protocol: Protocol, source: Source) -> Row:
    return Row(
        model.name,
        score.measure,
        score.value,
        None,
        UNITS[score.measure],
        str(source),
        source.url,
        prompt=protocol.title,
        boxes=protocol.boxes,
        mask=protocol.mask,
        photos=protocol.image_set,
        note=protocol.differs,
        command=evaluate_command(model, protocol),
    )


def _count_row(model: PublishedModel, count: Count, source: Source, *, is_counted: bool) -> Row:
    own = count_student(model.student).beside(count) if is_counted and model.student is not None else None
    return Row(
        model.name,
        count.measure,
        count.value,
        own,
        UNITS[count.measure],
        str(source),
        source.url,
        of=count.of,
        agrees=None if own is None else agrees(count, own),
        note=count.note,
        command="" if model.student is None else shlex.join(["distill", "students", "ls", model.student]),
    )


def _speed_row(model: PublishedModel, speed: Speed, source: Source) -> Row:
    is_nvidia = speed.device.startswith("NVIDIA") and model.student is not None
    bench = ["distill", "bench", "models", str(model.student), "--device", "cuda"]
    return Row(
        model.name,
        speed.measure,
        speed.value,
        None,
        UNITS[speed.measure],
        str(source),
        source.url,
        on=f"{speed.device}, precision {speed.precision}, {speed.conditions}",
        command=shlex.join(bench) if is_nvidia else "",
    )


def _sections(rows: Sequence[Row]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Return the sections that have rows, each with its columns and its cells."""
    found: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for section, measures in SECTIONS.items():
        of_section = [row for row in rows if row.measure in measures]
        columns = COLUMNS[section]
        if of_section:
            found.append((section, columns, [[shown(row, column) for column in columns] for row in of_section]))
    return found


def shown(row: Row, column: str) -> str:
    """Return one cell as a reader sees it."""
    if column == "measure":
        words = WORDS.get(row.measure, row.measure)
        return words if not row.of else f"{words}, {row.of}" if row.of != "not stated" else f"{words}, part not stated"
    if column in NUMBER_COLUMNS:
        number: Decimal | None = getattr(row, column)
        shown = ABSENT if number is None else str(number) if column == "published" else f"{number:.{DIGITS}g}"
        return shown if number is None else f"{shown} {row.unit}"
    if column == "agree":
        verdict = {True: "yes", False: "no", None: ""}[row.agrees]
        return ": ".join(part for part in (verdict, row.note) if part) or ABSENT
    return str(getattr(row, column)) or ABSENT


def _plain(row: Row) -> dict[str, Any]:
    """Return a row with numbers that JSON and CSV have."""
    return {key: float(value) if isinstance(value, Decimal) else value for key, value in asdict(row).items()}
