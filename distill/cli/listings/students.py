"""`distill students`: which encoders can be trained, how large they are, and which released checkpoints fit."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from distill.cli.arguments import Subparsers, add_command
from distill.text import BILLION, MILLION, print_tables

if TYPE_CHECKING:
    from distill.models.student_list import StudentSummary

EPILOG = """\
examples:
  distill students ls
  distill students ls 'efficientvit*'
  distill students ls 'timm/resnet1*'
  distill students ls timm/vit_small_patch16_224.augreg_in21k+sam
  distill students ls mobile_sam --json

Parameters and MACs (multiply-adds of convolutions, matrix products and attention) are those of the image encoder on one
image of the input size, for SAM's embedding of 256 x 64 x 64. Students of other installed packages are listed too.
timm has more than a thousand backbones: they are listed only for a pattern that begins with timm/. A complete timm name
may have options: timm/NAME.TAG uses the pixel statistics of these weights, @16 or @8-32 selects levels of these
strides, +sam selects SAM's neck, and +slim a narrow pyramid.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill students` and its actions."""
    parser = add_command(
        subparsers,
        "students",
        "list the student encoders",
        EPILOG,
        description="List the students: names, input sizes, parameters, MACs, released checkpoints that fit.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    ls = add_command(actions, "ls", "a table of students", EPILOG, description="List the students whose names match.")
    ls.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="with * and ?; or a part of a name")
    ls.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    ls.set_defaults(run=list_students)


def list_students(arguments: argparse.Namespace) -> int:
    """Print the students whose names match.

    Raises:
        DistillError: no student matches.
    """
    from rich.console import Console
    from rich.progress import track

    from distill.models.student_list import find_students, summarise_student

    names = find_students(arguments.pattern)
    progress = track(names, "counting", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    students = map(summarise_student, progress)
    if arguments.json:
        for student in students:
            print(json.dumps(asdict(student)))
    else:
        _print_table(list(students))
    return 0


def _print_table(students: Sequence[StudentSummary]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("student", no_wrap=True)
    for heading in ("input", "params (M)", "MACs (G)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("released checkpoint that fits")
    for student in students:
        note = student.published or f"none: {student.summary}"
        table.add_row(
            student.name,
            "-" if student.image_size is None else str(student.image_size),
            "-" if student.num_parameters is None else f"{student.num_parameters / MILLION:.1f}",
            "-" if student.macs is None else f"{student.macs / BILLION:.1f}",
            note if student.problem is None else student.problem.partition("\n")[0],
        )
    print_tables(table)
