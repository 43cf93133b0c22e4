"""`distill students`: what can be trained, how large it is, and which released checkpoint fits."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from distill.cli.arguments import add_command
from distill.errors import DistillError, did_you_mean
from distill.students import STUDENTS, TIMM_PREFIX, check_student_name, plugins
from distill.text import BILLION, MILLION, print_tables

OWN_DECODER = "its encoder only; its own decoder is not supported"

EPILOG = """\
examples:
  distill students ls
  distill students ls 'efficientvit*'
  distill students ls 'timm/resnet1*'
  distill students ls timm/vit_small_patch16_224.augreg_in21k+sam
  distill students ls mobile_sam --json

Parameters and MACs (multiply-adds of convolutions, matrix products and attention) are of the image encoder, one image
of the input size, for SAM's embedding of 256 x 64 x 64. Students of other installed packages are listed too. timm's
backbones are listed only for a pattern that begins with timm/; there are more than a thousand. A whole name of timm's
may say more: timm/NAME.TAG for the pixel statistics of these weights, @16 or @8-32 for levels of these strides, +sam
for SAM's neck.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


@dataclass(frozen=True)
class Row:
    """One line of the list. The counts are None for a student that could not be built; `problem` says why."""

    name: str
    image_size: int | None
    num_parameters: int | None
    macs: int | None
    summary: str
    published: str
    problem: str | None = None


def list_students(arguments: argparse.Namespace) -> int:
    """Print the students whose names match. Raises DistillError if none does."""
    from rich.console import Console
    from rich.progress import track

    names = matching_names(arguments.pattern)
    progress = track(names, "counting", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    rows = map(describe, progress)
    if arguments.json:
        for row in rows:
            print(json.dumps(asdict(row)))
    else:
        _print_table(list(rows))
    return 0


def matching_names(pattern: str) -> list[str]:
    """The students whose names match a pattern, or hold it if it has no wildcard; raises DistillError if none."""
    known: Iterable[str] = [*STUDENTS, *plugins()]
    if pattern.startswith(TIMM_PREFIX):
        import timm

        known = [TIMM_PREFIX + name for name in timm.list_models()]
    has_wildcard = any(character in pattern for character in "*?[")
    exact = [name for name in known if name == pattern] or _timm_with_options(pattern)
    found = exact or fnmatch.filter(known, pattern if has_wildcard else f"*{pattern}*")
    if not found:
        raise DistillError(f"no student matches '{pattern}'. {did_you_mean(pattern, known)}")
    return found


def _timm_with_options(pattern: str) -> list[str]:
    """The pattern where it is a whole name of timm's with a tag, levels or a neck."""
    is_name = pattern.startswith(TIMM_PREFIX) and any(sign in pattern for sign in ".@+")
    return [pattern] if is_name and not any(character in pattern for character in "*?[") else []


def describe(name: str) -> Row:
    """Count a student's parameters and MACs, without its memory or its time: on torch's meta device."""
    try:
        entry = check_student_name(name)
    except DistillError as error:  # a plug-in; the others are still listed
        return Row(name, None, None, None, "", "", str(error))
    published = f"{entry.published}; {OWN_DECODER}" if entry.own_decoder else entry.published
    size = entry.image_size
    from distill.models.complexity import count_encoder

    try:
        num_parameters, macs = count_encoder(name)
    except (DistillError, RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        return Row(name, size, None, None, entry.summary, published, f"{type(error).__name__}: {error}")
    return Row(name, size, num_parameters, macs, entry.summary, published)


def _print_table(rows: list[Row]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("student", no_wrap=True)
    for heading in ("input", "params (M)", "MACs (G)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("released checkpoint that fits")
    for row in rows:
        note = row.published or f"none: {row.summary}"
        table.add_row(
            row.name,
            "-" if row.image_size is None else str(row.image_size),
            "-" if row.num_parameters is None else f"{row.num_parameters / MILLION:.1f}",
            "-" if row.macs is None else f"{row.macs / BILLION:.1f}",
            note if row.problem is None else row.problem.partition("\n")[0],
        )
    print_tables(table)
