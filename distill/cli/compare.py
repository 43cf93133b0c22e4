"""`distill compare`: models side by side in tables and one page, from trainings, evaluations and benches."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command
from distill.cli.runtime import add_runtime
from distill.comparison.directory import CSV_FILE, MARKDOWN_FILE, PAGE_FILE, check_directory
from distill.errors import RunError
from distill.lock import hold_directory
from distill.text import say

PROTOCOLS = ("eval/coco_box", "eval/coco_point")

EPILOG = """\
examples:
  distill compare quickstart runs/l0_mask runs/resnet18 --images val2017 --annotations instances_val2017.json \\
      --out comparison                                # evaluates by box and by one click what is not evaluated yet
  distill compare teacher=quickstart ours=runs/l0_mask sam_vit_b=sam_vit_b_01ec64.pth --images DIR --annotations FILE \\
      --max-images 500 --out comparison               # names of your own; a released file needs its model's name
  distill compare runs/l0_box runs/resnet18_box --out comparison                 # evaluations that are there already
  distill compare runs/l0_mask runs/resnet18 --evaluations evaluations --bench bench.json --reference resnet18 \\
      --out comparison                                # nothing is run: what is found is joined
  distill compare runs/l0_mask published:efficientvit_sam_l0 --images val2017 --annotations instances_val2017.json \\
      --out comparison                                # beside published numbers: `distill tables` lists them

A SOURCE is a run directory, an evaluation's directory, a student.safetensors, `quickstart`, or NAME=FILE.pth. Models,
evaluations and benches are matched by the hash of the weights. Writes OUT/index.html (one file, opens from disk),
table.csv (every number) and table.md. Stopped and started again, it goes on where it was; what is in OUT/evaluations
and OUT/bench.json is not measured again. Paired differences are taken to the first model, or to --reference.

published:NAME, or LABEL=published:NAME, adds what was published about a model, marked as such and with its source. Its
scores stand in a column only if prompts, choice of the mask, photos and boxes are those of the column; a note says why
not. They have no interval and take no part in differences and plots.

Models stand side by side only if they were evaluated on the same instances. Another multimask policy gets a column of
its own, and students of different teachers are marked. With --max-images N, an evaluation that is found counts only if
it is of the first N photos; otherwise the model is evaluated again, or it is said why not. Sources of the same weights
are one model, with one label.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill compare`."""
    parser = add_command(
        subparsers,
        "compare",
        "models side by side: tables, intervals, curves, masks, in one page",
        EPILOG,
        description="Join evaluations, benches and records of training into a table and a page.",
    )
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="*", help="a run, an evaluation, a model or published:NAME; or LABEL=SOURCE"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photos to evaluate on, and to show")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="their COCO-format instances")
    parser.add_argument("--max-images", type=int, default=0, metavar="N", help="the first N photos alone; default: all")
    parser.add_argument(
        "--protocols", nargs="+", default=PROTOCOLS, metavar="RECIPE", help=f"default: {' '.join(PROTOCOLS)}"
    )
    parser.add_argument(
        "--evaluations", nargs="+", type=Path, default=[], metavar="DIR", help="directories that hold evaluations"
    )
    parser.add_argument("--bench", type=Path, metavar="FILE", help="what `distill bench models --json FILE` wrote")
    parser.add_argument("--no-bench", action="store_true", help="measure no sizes and no latency")
    parser.add_argument("--reference", metavar="LABEL", help="the model that differences are taken to")
    parser.add_argument("--device", help="of evaluations and latency: cpu, cuda ...")
    parser.add_argument("--gallery", type=int, default=30, metavar="N", help="instances to show; default: %(default)s")
    add_runtime(parser)
    parser.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> int:
    """Compare the models, write the page and the tables, and print the main table."""
    check_arguments(arguments)

    from distill.comparison.measure import EvaluationData
    from distill.comparison.run import compare_models, write_comparison
    from distill.comparison.tables import print_table
    from distill.runtimes.execution import Execution

    images, annotations, out = arguments.images, arguments.annotations, arguments.out
    with hold_directory(out, give="--out DIR"):
        comparison = compare_models(
            arguments.sources,
            out,
            folders=arguments.evaluations,
            data=EvaluationData(images, annotations, arguments.max_images) if annotations else None,
            protocols=arguments.protocols,
            bench_file=arguments.bench,
            with_bench=not arguments.no_bench,
            reference=arguments.reference,
            device=arguments.device,
            execution=Execution(arguments.runtime, arguments.precision),
        )
        write_comparison(comparison, out, images=images, annotations=annotations, num_rows=arguments.gallery)
    print_table(comparison)
    for note in comparison.notes:
        say(f"note: {note}", file=sys.stderr)
    say(f"{out / PAGE_FILE}: the page; {CSV_FILE} and {MARKDOWN_FILE} beside it")
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check what can be checked before anything is read. Raises RunError."""
    if (arguments.images is None) != (arguments.annotations is None):
        raise RunError("--images and --annotations belong together: give both, or neither")
    if arguments.max_images and arguments.annotations is None:
        raise RunError(
            f"--max-images {arguments.max_images}: nothing is evaluated without --images and --annotations, and found "
            "evaluations are shown as they are: give both, or leave it out"
        )
    if arguments.bench and arguments.no_bench:
        raise RunError("--bench and --no-bench exclude each other: leave one out")
    if not arguments.sources and not arguments.evaluations:
        raise RunError("nothing to compare: give runs, evaluations or models, or --evaluations DIR")
    check_directory(arguments.out)
