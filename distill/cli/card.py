"""`distill card`: the model card beside a student's weights, ready for the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.arguments import Subparsers, add_command
from distill.errors import RunError
from distill.text import say

if TYPE_CHECKING:
    from distill.evaluation.finished import FinishedEvaluation

EPILOG = """\
examples:
  distill card runs/l0_mask
  distill card runs/l0_mask --add runs/l0_box runs/l0_point --bench bench.json
  distill card runs/l0_mask --forget --add runs/l0_box           # drops what was added before

Writes README.md beside student.safetensors: architecture, teacher, data, recipe, scores with their protocol and 95 %
intervals, speed, licences. `distill train` writes it at the end; scores come into it by --add alone. Each stands under
its protocol, the hash of the annotations and the number of photos, so that a trial on a few photos takes no other's
place. To keep a card that you edited as it is, take its last line out: it is then never written over.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill card`."""
    parser = add_command(subparsers, "card", "write the model card of a student", EPILOG)
    parser.add_argument("model", metavar="RUN", help="a run directory or a student.safetensors")
    parser.add_argument(
        "--add", nargs="+", type=Path, default=[], metavar="EVALUATION", help="evaluations, or directories of some"
    )
    parser.add_argument("--forget", action="store_true", help="drop the scores and the speed that were added before")
    parser.add_argument("--bench", type=Path, metavar="FILE", help="what `distill bench models --json FILE` wrote")
    parser.set_defaults(run=card)


def card(arguments: argparse.Namespace) -> int:
    """Write the card."""
    from distill.cards.measured import read_bench
    from distill.cards.writing import CARD_FILE, is_ours, write_card
    from distill.models.checkpoint import find_weights

    weights = find_weights(arguments.model)
    if not is_ours(weights.parent):
        raise RunError(f"{weights.parent / CARD_FILE}: was edited to be kept (its last line is gone); remove it first")
    found = [evaluation for folder in arguments.add for evaluation in evaluations_of(weights, folder)]
    bench = read_bench(arguments.bench) if arguments.bench else None
    say(f"wrote {write_card(weights, found, bench, forget=arguments.forget)}")
    return 0


def evaluations_of(weights: Path, folder: Path) -> list[FinishedEvaluation]:
    """Return the evaluations of some weights in a directory, and print which others are there.

    Raises:
        RunError: none is finished, or all are of other weights.
    """
    from distill.evaluation.finished import find_evaluations
    from distill.models.checkpoint import sha256_file

    found, unfinished = find_evaluations(folder, option="--add")
    sha256 = sha256_file(weights)
    ours = [evaluation for evaluation in found if evaluation.metrics["weights_sha256"] == sha256]
    if not ours:
        why = f"of other weights than {weights}; evaluate this model" if found else "not finished; resume=true ends it"
        raise RunError(f"--add {folder}: {why}")
    for evaluation in found:
        if evaluation not in ours:
            say(f"{evaluation.directory}: of other weights, left out")
    for directory in unfinished:
        say(f"{directory}: not finished, left out")
    return ours
