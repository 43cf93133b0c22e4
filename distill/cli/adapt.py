"""`distill adapt`: a small student for the photos of a domain, from a teacher, in one command."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.adapt.options import VAL_SHARE, AdaptOptions
from distill.cli.arguments import Subparsers, add_command, positive_float, positive_int, share
from distill.text import say

EPILOG = """\
examples:
  distill adapt photos --annotations instances.json --teacher quickstart --out adapted --dry-run
  distill adapt photos --annotations masks --teacher quickstart --out adapted
  distill adapt photos --annotations instances.json --teacher quickstart --out adapted --minutes 30
  distill adapt train --annotations train.json --val-photos val --val-annotations val.json \\
      --teacher sam_vit_b --teacher-checkpoint sam_vit_b_01ec64.pth --student timm/resnet18@16 --out adapted

FILE is COCO's instances JSON. MASKS is a folder with a mask for each photo NAME.jpg: NAME.png, in which each value
above 0 is one object (grey with 8 or 16 bits, or colours), or a folder NAME of binary masks, one file an object.

The command builds image shards, caches the teacher's embeddings, trains the student on them (after that it has seen no
mask: zero-shot) and then on the masks (adapted). It evaluates teacher, zero-shot and adapted student on photos that
were held out, exports the adapted student to ONNX, and writes one page, index.html. Stopped and started again by the
same command it goes on.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill adapt`."""
    parser = add_command(
        subparsers,
        "adapt",
        "a small student for your own photos and masks: all steps in one command",
        EPILOG,
        description="Adapt a small student to the photos of a domain, and compare it with its teacher.",
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of photos")
    add = parser.add_argument
    add("--annotations", type=Path, required=True, metavar="FILE|MASKS", help="COCO's JSON, or a folder of masks")
    add("--teacher", required=True, metavar="MODEL", help="quickstart, a run or student.safetensors, sam_vit_b|l|h")
    add("--teacher-checkpoint", type=Path, metavar="FILE", help="the released file of a sam_vit_*")
    add("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    held_out = parser.add_argument_group("validation")
    add = held_out.add_argument
    add("--val-share", type=share, default=VAL_SHARE, metavar="X", help="of photos held out (default: %(default)s)")
    add("--val-photos", type=Path, metavar="DIR", help="photos to hold out, in the place of a share of PHOTOS")
    add("--val-annotations", type=Path, metavar="FILE|MASKS", help="of --val-photos")
    add(
        "--val-masks",
        type=positive_int,
        metavar="N",
        help="score at most N masks a photo, drawn by --seed (default: all)",
    )
    data = parser.add_argument_group("masks")
    data.add_argument(
        "--connected-regions", action="store_true", help="MASKS: each connected region of a mask is an object"
    )
    data.add_argument("--skip-unannotated", action="store_true", help="leave photos without a mask out")
    student = parser.add_argument_group("student")
    add = student.add_argument
    add("--student", metavar="NAME", help="default: the teacher's timm backbone, shorter and at half its resolution")
    add("--image-size", type=positive_int, metavar="S", help="pixels of the student's longest side")
    start = student.add_mutually_exclusive_group()
    start.add_argument("--init-from", metavar="X", help="start from a run, a released file, or `teacher`'s layers")
    start.add_argument(
        "--pretrained", metavar="X", help="start a timm backbone from a classifier's file, or `timm`'s hub"
    )
    length = parser.add_argument_group("length")
    add = length.add_argument
    add("--feature-steps", type=positive_int, metavar="N", help="of the stage without masks (default: the recipe's)")
    add("--mask-steps", type=positive_int, metavar="N", help="of the stage with masks (default: the recipe's)")
    add("--minutes", type=positive_float, metavar="M", help="lengthen or shorten both so that all takes about so long")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split and of both stages")
    parser.add_argument("--dry-run", action="store_true", help="say what will be done and how long it takes, and stop")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Adapt a student, or say what that would take."""
    values = {name: value for name, value in vars(arguments).items() if name not in ("run", "dry_run")}
    options = AdaptOptions(**values)
    if arguments.dry_run:
        return _dry_run(options)

    from distill.adapt.run import adapt

    adapt(options)
    return 0


def _dry_run(options: AdaptOptions) -> int:
    """Print the steps with an estimate of their time."""
    from rich.table import Table

    from distill.adapt.run import estimate
    from distill.text import print_tables

    lines, found = estimate(options)
    say("\n".join(lines))
    table = Table("step", "what it does", "about", box=None, pad_edge=False)
    for row in found.rows():
        table.add_row(*row)
    print_tables(table)
    say("nothing was written")
    return 0
