"""The card of a student on disk: README.md beside the weights, and card.json with what was measured.

card.json keeps the measurements under the hash of the weights. A card that is written again keeps its scores, and the
card of a student that was trained again does not claim the old ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.cards.model_card import card_text
from distill.config.run_directory import RECIPE_FILE
from distill.errors import RunError
from distill.evaluation.finished import FinishedEvaluation
from distill.files import write_json, write_text
from distill.models.checkpoint import STUDENT_FILE, is_packaged, sha256_file

CARD_FILE, MEASURED_FILE = "README.md", "card.json"
# The last line of a card. The owner of a card takes the line out to keep the file; it is then never written over.
OURS = "<!-- Written by distill, and again after each evaluation. Take this line out to keep the file as it is. -->"


def is_ours(folder: Path) -> bool:
    """Return whether the card of a directory may be written: it is absent, or as this program left it."""
    path = folder / CARD_FILE
    return not path.is_file() or OURS in path.read_text(encoding="utf-8")


def write_card(
    weights: Path, evaluations: Sequence[FinishedEvaluation] = (), bench: Mapping[str, Any] | None = None
) -> Path:
    """Write the card beside the weights, with the measurements given here and those of before.

    Args:
        evaluations: finished evaluations; those of other weights are left out.
        bench: a document of `distill bench models`; rows of other weights are left out.
    Returns:
        The path of the card.
    Raises:
        DistillError: the weights or card.json cannot be read.
    """
    folder = weights.parent
    measured = _read_measured(folder / MEASURED_FILE, sha256_file(weights))
    for evaluation in evaluations:
        if evaluation.metrics["weights_sha256"] == measured["weights_sha256"]:
            data = (evaluation.metrics.get("annotations"), evaluation.metrics.get("max_images"))
            measured["evaluations"]["/".join(map(str, (*evaluation.protocol, *data)))] = evaluation.metrics
    rows = [row for row in (bench or {}).get("models", []) if _is_bench_of(row, weights, measured["weights_sha256"])]
    if bench is not None and rows:
        measured["bench"] = {"machine": bench.get("machine", {}), **rows[0]}
    if measured["evaluations"] or measured["bench"]:
        write_json(folder / MEASURED_FILE, measured, indent=1, raises=RunError)
    path = folder / CARD_FILE
    write_text(path, f"{card_text(weights, measured)}\n{OURS}\n", raises=RunError)
    return path


def refresh_card(
    model: str, evaluations: Sequence[FinishedEvaluation] = (), bench: Mapping[str, Any] | None = None
) -> None:
    """Add measurements to the card of a student that was trained here.

    Other models, directories that are read-only, and cards that their owner keeps are left as they are.

    Args:
        model: as `load_model` takes it.
        evaluations, bench: as `write_card` takes them.
    """
    if is_packaged(model):
        return
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    is_run = all((folder / name).is_file() for name in (STUDENT_FILE, RECIPE_FILE))
    if Path(model).exists() and is_run and os.access(folder, os.W_OK) and is_ours(folder):
        write_card(folder / STUDENT_FILE, evaluations, bench)


def _read_measured(path: Path, sha256: str) -> dict[str, Any]:
    """Read what was measured of these weights before: `evaluations`, metrics by protocol, and `bench`."""
    empty: dict[str, Any] = {"weights_sha256": sha256, "evaluations": {}, "bench": None}
    if not path.is_file():
        return empty
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        return measured if measured["weights_sha256"] == sha256 else empty
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not what distill wrote ({error}); remove it, and evaluate again") from error


def _is_bench_of(row: Mapping[str, Any], weights: Path, sha256: str) -> bool:
    """Return whether a row of a bench is of these weights: by their hash, or by their path if it has no hash."""
    if row.get("weights_sha256") is not None:
        return bool(row["weights_sha256"] == sha256)
    return Path(str(row.get("model"))).resolve() in (weights.resolve(), weights.parent.resolve())
