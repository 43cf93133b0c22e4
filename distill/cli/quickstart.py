"""`distill quickstart`: everything from photographs to a report, on a laptop, offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command, positive_int
from distill.text import say

TRAIN_PHOTOS, HELD_OUT_PHOTOS = 76, 24  # all photos of the packaged set `nuclei`

EPILOG = """\
examples:
  distill quickstart                     # some minutes on two cores; writes quickstart/index.html
  distill quickstart --out /tmp/try --train-photos 40 --held-out-photos 12

Stopped and started again it goes on with the first step that is not finished.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill quickstart`."""
    parser = add_command(
        subparsers,
        "quickstart",
        "the whole pipeline in minutes: data, cache, both stages, evaluation, export, report",
        EPILOG,
        description="Distil the packaged teacher into a student of a tenth of its cost, on photographs of cell nuclei.",
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--train-photos", type=positive_int, default=TRAIN_PHOTOS, metavar="N", help="at most, and default: %(default)s"
    )
    parser.add_argument(
        "--held-out-photos",
        type=positive_int,
        default=HELD_OUT_PHOTOS,
        metavar="N",
        help="at most, and default: %(default)s",
    )
    parser.set_defaults(run=quickstart)


def quickstart(arguments: argparse.Namespace) -> int:
    """Run every step that is not finished, and print what came out of it."""
    from distill.quickstart.pipeline import REPORT_FILE, SUMMARY_FILE, QuickstartPipeline, sentence

    out = arguments.out
    summary = QuickstartPipeline(out, arguments.train_photos, arguments.held_out_photos).run()
    say(f"{out / REPORT_FILE}: the report\n{out / SUMMARY_FILE}: its numbers\n\n{sentence(summary)}")
    return 0
