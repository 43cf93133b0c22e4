"""Published numbers as rows of a comparison: as their sources state them, and never as measured here.

A published row has no instances. So it has no interval, and takes no part in differences, plots and the gallery. Its
scores stand in a column only if prompts, choice of the mask, photos and boxes are those of the column's evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from distill.comparison.models import split_label
from distill.config.loading import EvaluationRecipe, load_recipe
from distill.errors import RunError
from distill.evaluation.finished import FinishedEvaluation, ProtocolKey
from distill.evaluation.record import protocol_rules
from distill.published.numbers import MULTIMASK_WORDS, Protocol, PublishedModel, Score, published_numbers
from distill.published.table import shown, table_rows

if TYPE_CHECKING:
    from distill.comparison.join import Comparison

PREFIX = "published:"
MARK = "(published)"
SECTION = "Published numbers"
HEADER = ("model", "measure", "published", "how", "beside the measured ones", "source")
# A set's photos without an instance are not counted by an evaluation: 48 of COCO val's 5,000, fewer of LVIS's.
LEAST_SHARE = 0.95


@dataclass(frozen=True)
class PublishedRow:
    """A published model as a row of a comparison. Its label ends in the mark of published rows."""

    label: str
    model: PublishedModel


def split_published(sources: Sequence[str]) -> tuple[list[str], list[PublishedRow]]:
    """Split the sources of a comparison into those to be read from disk, and the published rows.

    Args:
        sources: as `read_models` takes them; a published row is published:NAME or LABEL=published:NAME.
    Raises:
        DistillError: a name has no published numbers, or two rows have one label.
    """
    others: list[str] = []
    rows: list[PublishedRow] = []
    for source in sources:
        label, name = split_label(source)
        if not name.startswith(PREFIX):
            others.append(source)
            continue
        model = published_numbers().model(name.removeprefix(PREFIX))
        row = PublishedRow(f"{label or model.name} {MARK}", model)
        if row.label in [other.label for other in rows]:
            raise RunError(f"{source}: two published rows are called '{row.label}'; give it once, or LABEL={name}")
        rows.append(row)
    return others, rows


def column_of(score: Score, comparison: Comparison) -> tuple[ProtocolKey | None, str]:
    """Return the protocol of the comparison in whose column a published score may stand, or None and why not."""
    protocol = published_numbers().protocols[score.protocol]
    reasons = []
    for key in comparison.protocols:
        evaluation = comparison.evaluations(key)[0][1]
        prompts = (score.measure, protocol.prompt, protocol.num_clicks)
        if prompts != (evaluation.headline, key.prompt, key.num_clicks):
            continue
        reason = _difference(protocol, key, evaluation)
        if reason is None:
            return key, ""
        reasons.append(reason)
    return None, reasons[0] if reasons else "no evaluation by such prompts"


def score_in(row: PublishedRow, key: ProtocolKey, comparison: Comparison) -> Score | None:
    """Return the published score that stands in the column of a protocol, or None."""
    return next((score for score in row.model.scores if column_of(score, comparison)[0] == key), None)


def published_cells(comparison: Comparison) -> list[list[str]]:
    """Return all numbers of the published rows, with what they stand beside; the header is HEADER."""
    cells = []
    for row in comparison.published:
        found = table_rows(published_numbers(), [row.model])
        places = [_place(score, comparison) for score in row.model.scores]
        for i, number in enumerate(found):
            how = ", ".join(part for part in (number.prompt, number.boxes, number.mask, number.photos) if part)
            place = places[i] if i < len(places) else ""  # scores come first
            cells.append(
                [
                    row.label,
                    shown(number, "measure"),
                    shown(number, "published"),
                    how or number.on,
                    place,
                    number.source,
                ]
            )
    return cells


def published_notes(comparison: Comparison) -> list[str]:
    """Return a sentence for each published row: where its scores stand, and why some stand alone."""
    notes = []
    numbers = published_numbers()
    for row in comparison.published:
        places = [(score, *column_of(score, comparison)) for score in row.model.scores]
        standing = [(score, key) for score, key, _ in places if key is not None]
        for score, key in standing:
            differs = numbers.protocols[score.protocol].differs
            source = numbers.sources[score.source]
            notes.append(
                f"{row.label}: the score in the column '{key.full_title}' is from {source}, and not measured here"
                + (f"; {differs}" if differs else "")
            )
        if not row.model.scores:
            notes.append(f"{row.label}: no score of it is published in a source that `distill tables` knows")
        elif not standing:
            reasons = "; ".join(dict.fromkeys(f"{score.protocol}: {reason}" for score, _, reason in places))
            notes.append(f"{row.label}: its scores match no column and stand under '{SECTION}' alone ({reasons})")
    return notes


def _place(score: Score, comparison: Comparison) -> str:
    key, reason = column_of(score, comparison)
    return f"in the column '{key.full_title}'" if key is not None else f"in no column: {reason}"


def _difference(protocol: Protocol, key: ProtocolKey, evaluation: FinishedEvaluation) -> str | None:
    """Return how an evaluation by the same prompts differs from a published protocol, or None if it does not."""
    if protocol.multimask is None:
        return "its source does not say how the mask is chosen"
    if protocol.publisher and key.name != protocol.protocol_name:
        return f"the rules here are those of eval/{key.name}, and there those of {protocol.recipe}"
    if key.multimask != protocol.multimask:
        ours = MULTIMASK_WORDS.get(key.multimask, str(key.multimask))
        return f"the mask here is {ours}, and there {protocol.mask}"
    if protocol.publisher and evaluation.metrics.get("rules") != _rules_of(protocol):
        return f"options of {protocol.recipe} were changed here"
    if not _is_over(evaluation, protocol):
        return f"the photos here are not those of {protocol.image_set}"
    if key.prompt == "detection" and Path(str(evaluation.metrics.get("detections"))).name != protocol.boxes:
        return f"the boxes here are not those of {protocol.boxes}"
    return None


@cache
def _rules_of(protocol: Protocol) -> str | None:
    """Return what an evaluation by the recipe of a published protocol says of its rules."""
    given = [*protocol.options, "data.images=.", "data.annotations=a.json", "run=out"]
    return protocol_rules(cast(EvaluationRecipe, load_recipe(protocol.recipe, given, check_paths=False)))


def _is_over(evaluation: FinishedEvaluation, protocol: Protocol) -> bool:
    """Return whether an evaluation is over all photos of a protocol's set, by the name of its annotations."""
    split, metrics = protocol.split, evaluation.metrics
    if split is None or split.annotations is None or split.num_photos is None or metrics.get("max_images"):
        return False
    annotations = str(metrics.get("annotations"))
    is_named = annotations == protocol.image_set or Path(annotations).name == Path(split.annotations).name
    return is_named and LEAST_SHARE * split.num_photos <= (metrics.get("num_images") or 0) <= split.num_photos
