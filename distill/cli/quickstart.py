"""`distill quickstart`: everything from photographs to a report, on a laptop, offline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command

TRAIN_PHOTOS = 320

EPILOG = """\
examples:
  distill quickstart                     # some minutes on two cores; writes quickstart/index.html
  distill quickstart --out /tmp/try --train-photos 400

Stopped and started again it goes on with the first step that is not finished.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill quickstart`."""
    parser = add_command(
        subparsers,
        "quickstart",
        "the whole pipeline in minutes: data, cache, both stages, evaluation, report",
        EPILOG,
        description="Distil the packaged teacher into a small student on data that the command composes itself.",
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--train-photos", type=int, default=TRAIN_PHOTOS, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=quickstart)


def quickstart(arguments: argparse.Namespace) -> int:
    """Run every step that is not finished, and print the summary."""
    from distill.quickstart.pipeline import REPORT_FILE, QuickstartPipeline

    summary = QuickstartPipeline(arguments.out, arguments.train_photos).run()
    print(f"{arguments.out / REPORT_FILE}: the report\n{json.dumps(summary, indent=2)}")
    return 0
