"""`distill card`: the model card beside a student's weights, ready for the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command
from distill.errors import RunError

EPILOG = """\
examples:
  distill card runs/l0_mask
  distill card runs/l0_mask --evaluations runs/l0_box runs/l0_point --bench bench.json

Writes README.md beside student.safetensors: architecture, teacher, data, recipe, scores with their protocol and 95 %
intervals, speed, licences. `distill train` writes it at the end, and `distill evaluate` and `distill compare` add what
they measured. To keep a card that you edited as it is, take its last line out: it is then never written over.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill card`."""
    parser = add_command(subparsers, "card", "write the model card of a student", EPILOG)
    parser.add_argument("model", metavar="RUN", help="a run directory or a student.safetensors")
    parser.add_argument(
        "--evaluations", nargs="+", type=Path, default=[], metavar="DIR", help="directories that hold evaluations"
    )
    parser.add_argument("--bench", type=Path, metavar="FILE", help="what `distill bench models --json FILE` wrote")
    parser.set_defaults(run=card)


def card(arguments: argparse.Namespace) -> int:
    """Write the card."""
    from distill.cards.writing import CARD_FILE, is_ours, write_card
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
