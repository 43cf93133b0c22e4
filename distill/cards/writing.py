"""The card of a student on disk: README.md beside the weights, and card.json with what was measured.

card.json keeps the measurements under the hash of the weights. A card that is written again keeps its scores, and the
card of a student that was trained again does not claim the old ones. Each score stands under its protocol and the hash
of what was scored, so that an evaluation of three photos never takes the place of one of all.

`distill train` writes the card of its own run, and `distill card RUN --add EVALUATION` adds to it. No other command
writes into the run directory of a student.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.cards.measured import read_card
from distill.cards.model_card import card_text
from distill.config.run_directory import RECIPE_FILE
from distill.errors import RunError
from distill.evaluation.finished import FinishedEvaluation, protocol_of
from distill.files import write_json, write_text
from distill.models.checkpoint import STUDENT_FILE, is_packaged, sha256_file

CARD_FILE, MEASURED_FILE = "README.md", "card.json"
# The last line of a card. The owner of a card takes the line out to keep the file; it is then never written over.
OURS = "<!-- Written by distill, and again by `distill card`. Take this line out to keep the file as it is. -->"
# Of cards that earlier versions wrote.
OURS_BEFORE = (
    "<!-- Written by distill, and again after each evaluation. Take this line out to keep the file as it is. -->"
)


def is_ours(folder: Path) -> bool:
    """Return whether the card of a directory may be written: it is absent, or as this program left it."""
    path = folder / CARD_FILE
    if not path.is_file():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    return OURS in text or OURS_BEFORE in text


def write_card(
    weights: Path,
    evaluations: Sequence[FinishedEvaluation] = (),
    bench: Mapping[str, Any] | None = None,
    *,
    forget: bool = False,
) -> Path:
    """Write the card beside the weights, with the measurements given here and those of before.

    Args:
        evaluations: finished evaluations; those of other weights are left out.
        bench: a document of `distill bench models`; rows of other weights are left out.
        forget: leave out the measurements of before.
    Returns:
        The path of the card.
    Raises:
        DistillError: the weights or card.json cannot be read.
    """
    folder = weights.parent
    measured = read_measured(weights)
    if forget:
        measured |= {"evaluations": {}, "bench": None}
    for evaluation in evaluations:
        if evaluation.metrics["weights_sha256"] == measured["weights_sha256"]:
            row = {**evaluation.metrics, "data_sha256": evaluation.data_sha256}
            measured["evaluations"][_row_key(row)] = row
    rows = [row for row in (bench or {}).get("models", []) if _is_bench_of(row, weights, measured["weights_sha256"])]
    if bench is not None and rows:
        measured["bench"] = {"machine": bench.get("machine", {}), **rows[0]}
    if measured["evaluations"] or measured["bench"] or (folder / MEASURED_FILE).is_file():
        write_json(folder / MEASURED_FILE, measured, indent=1, raises=RunError)
    path = folder / CARD_FILE
    write_text(path, whole_card(weights, measured), raises=RunError)
    return path


def whole_card(weights: Path, measured: Mapping[str, Any]) -> str:
    """Return the content of README.md, with the line that says whose file it is.

    Args:
        measured: what `read_measured` returns.
    Raises:
        CheckpointError: the weights cannot be read.
    """
    return f"{card_text(weights, measured)}\n{OURS}\n"


def refresh_card(
    model: str, evaluations: Sequence[FinishedEvaluation] = (), bench: Mapping[str, Any] | None = None
) -> None:
    """Write the card of a student whose run directory belongs to the caller.

    Other models, directories that are read-only, and cards that their owner keeps are left as they are.

    Args:
        model: as `load_model` takes it.
        evaluations, bench: as `write_card` takes them.
    """
    if is_packaged(model):
        return
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    if Path(model).exists() and is_run(folder) and os.access(folder, os.W_OK) and is_ours(folder):
        write_card(folder / STUDENT_FILE, evaluations, bench)


def is_run(folder: Path) -> bool:
    """Return whether a directory holds a student that was trained here."""
    return all((folder / name).is_file() for name in (STUDENT_FILE, RECIPE_FILE))


def read_measured(weights: Path) -> dict[str, Any]:
    """Read what was measured of these weights before: `evaluations`, metrics by row, and `bench`.

    Raises:
        RunError: card.json is damaged.
    """
    path, sha256 = weights.parent / MEASURED_FILE, sha256_file(weights)
    empty: dict[str, Any] = {"weights_sha256": sha256, "evaluations": {}, "bench": None}
    if not path.is_file():
        return empty
    measured = read_card(path)
    if measured["weights_sha256"] != sha256:
        return empty
    rows = [_with_hash(key, row) for key, row in measured["evaluations"].items()]
    return {**measured, "evaluations": {_row_key(row): row for row in rows}}


def _row_key(row: Mapping[str, Any]) -> str:
    """Return what tells a row of the scores from others: the protocol, and the hash and number of what it scored."""
    data = [row["data_sha256"], *(row.get(key) for key in ("detections_sha256", "teacher_sha256", "num_images"))]
    return "/".join(map(str, (*protocol_of(row), *data)))


def _with_hash(key: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the hash of its data. Rows of earlier versions have no more than the path in their key."""
    known = row.get("data_sha256") or row.get("annotations_sha256")
    return {**row, "data_sha256": known or hashlib.sha256(key.encode()).hexdigest()}


def _is_bench_of(row: Mapping[str, Any], weights: Path, sha256: str) -> bool:
    """Return whether a row of a bench is of these weights: by their hash, or by their path if it has no hash."""
    if row.get("weights_sha256") is not None:
        return bool(row["weights_sha256"] == sha256)
    return Path(str(row.get("model"))).resolve() in (weights.resolve(), weights.parent.resolve())
