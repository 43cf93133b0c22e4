"""`distill card`: the model card beside a student's weights, ready for the Hugging Face Hub.

What was measured is kept in card.json beside it, by the hash of the weights, so that a card that is written again
keeps its scores, and the card of a student that was trained again does not claim the old ones.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.arguments import add_command
from distill.errors import RunError

if TYPE_CHECKING:
    from distill.evaluation.finished import FinishedEvaluation

CARD_FILE, MEASURED_FILE = "README.md", "card.json"
# The last line of a card. A card without it was made its owner's, and is never written over.
OURS = "<!-- Written by distill, and again after each evaluation. Take this line out to keep the file as it is. -->"

EPILOG = """\
examples:
  distill card runs/l0_mask
  distill card runs/l0_mask --evaluations runs/l0_box runs/l0_point --bench bench.json

Writes README.md beside student.safetensors: architecture, teacher, data, recipe, scores with their protocol and 95 %
intervals, speed, licences. `distill train` writes it at the end, and `distill evaluate` and `distill compare` add what
they measured. To keep a card that you edited as it is, take its last line out: it is then never written over.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(subparsers, "card", "write the model card of a student", EPILOG)
    parser.add_argument("model", metavar="RUN", help="a run directory or a student.safetensors")
    parser.add_argument(
        "--evaluations", nargs="+", type=Path, default=[], metavar="DIR", help="directories that hold evaluations"
    )
    parser.add_argument("--bench", type=Path, metavar="FILE", help="what `distill bench models --json FILE` wrote")
    parser.set_defaults(run=card)


def card(arguments: argparse.Namespace) -> int:
    """Write the card."""
    from distill.comparison.join import read_bench
    from distill.evaluation.finished import find_evaluations
    from distill.models.checkpoint import find_weights, sha256_file

    weights = find_weights(arguments.model)
    if not is_ours(weights.parent):
        raise RunError(f"{weights.parent / CARD_FILE}: was edited to be kept (its last line is gone); remove it first")
    found = [evaluation for folder in arguments.evaluations for evaluation in find_evaluations(folder)[0]]
    bench = read_bench(arguments.bench) if arguments.bench else None
    sha256 = sha256_file(weights)
    for evaluation in found:
        if evaluation.metrics["weights_sha256"] != sha256:
            print(f"{evaluation.directory}: of other weights, left out")
    print(f"wrote {write_card(weights, found, bench)}")
    return 0


def is_ours(folder: Path) -> bool:
    """Whether the card of a directory may be written: it is absent, or as this program left it."""
    path = folder / CARD_FILE
    return not path.is_file() or OURS in path.read_text(encoding="utf-8")


def write_card(
    weights: Path, evaluations: Sequence[FinishedEvaluation] = (), bench: Mapping[str, Any] | None = None
) -> Path:
    """Write the card beside the weights, with what was measured now and before.

    Args:
        evaluations, bench (a document of `distill bench models`): what is not of these weights is left out.
    Raises:
        DistillError: weights that cannot be read.
    """
    from distill.cards.model_card import card_text
    from distill.models.checkpoint import sha256_file

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
        (folder / MEASURED_FILE).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    path = folder / CARD_FILE
    path.write_text(f"{card_text(weights, measured)}\n{OURS}\n", encoding="utf-8")
    return path


def refresh_card(
    model: str, evaluations: Sequence[FinishedEvaluation] = (), bench: Mapping[str, Any] | None = None
) -> None:
    """Add what was measured to the card of a student that was trained here; other models and read-only ones get none.

    Args:
        model: as `load_model` takes it.
    """
    from distill.config.run_directory import RECIPE_FILE
    from distill.models.checkpoint import STUDENT_FILE, is_packaged

    if is_packaged(model):
        return
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    is_run = all((folder / name).is_file() for name in (STUDENT_FILE, RECIPE_FILE))
    if Path(model).exists() and is_run and os.access(folder, os.W_OK) and is_ours(folder):
        write_card(folder / STUDENT_FILE, evaluations, bench)


def _read_measured(path: Path, sha256: str) -> dict[str, Any]:
    """What was measured of these weights before: metrics by protocol, and a bench."""
    empty: dict[str, Any] = {"weights_sha256": sha256, "evaluations": {}, "bench": None}
    if not path.is_file():
        return empty
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        return measured if measured["weights_sha256"] == sha256 else empty
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not what distill wrote ({error}); remove it, and evaluate again") from error


def _is_bench_of(row: Mapping[str, Any], weights: Path, sha256: str) -> bool:
    if row.get("weights_sha256") is not None:
        return bool(row["weights_sha256"] == sha256)
    return Path(str(row.get("model"))).resolve() in (weights.resolve(), weights.parent.resolve())
