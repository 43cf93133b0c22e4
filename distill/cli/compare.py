"""`distill compare`: models side by side in tables and one page, from trainings, evaluations and benches."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.arguments import Subparsers, add_command
from distill.errors import RunError
from distill.files import write_text
from distill.models.devices import usable_device

if TYPE_CHECKING:
    from distill.comparison.join import Comparison

PAGE_FILE, CSV_FILE, MARKDOWN_FILE = "index.html", "table.csv", "table.md"
OWN_FILES = (PAGE_FILE, CSV_FILE, MARKDOWN_FILE, "bench.json", "evaluations")
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

A SOURCE is a run directory, an evaluation's directory, a student.safetensors, `quickstart`, or NAME=FILE.pth. What
belongs together is told by the hash of the weights. Writes OUT/index.html (one file, opens from disk), table.csv (every
number) and table.md. Stopped and started again, it goes on where it was; what is in OUT/evaluations and OUT/bench.json
is not measured again. Paired differences are taken to the first model, or to --reference.

Models may stand side by side only where they answered the same instances; another multimask policy is a column of its
own, and students of different teachers are marked.
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
    parser.add_argument("sources", metavar="SOURCE", nargs="*", help="a run, an evaluation or a model; or LABEL=SOURCE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photos to ask about, and to show")
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
    parser.set_defaults(run=compare)


def compare(arguments: argparse.Namespace) -> int:
    """Read the models, measure what is missing, and write the comparison."""
    check_arguments(arguments)

    from distill.cards.writing import refresh_card
    from distill.comparison.join import add_benches, build_comparison, read_bench
    from distill.comparison.measure import EvaluationData, evaluate_missing, measure_speed
    from distill.comparison.models import read_models

    out: Path = arguments.out
    usable_device(arguments.device)
    models, notes = read_models(arguments.sources, arguments.evaluations)
    bench = read_bench(arguments.bench) if arguments.bench else None
    build_comparison(models, reference=arguments.reference)  # refuses before anything is evaluated
    out.mkdir(parents=True, exist_ok=True)
    if arguments.annotations:
        data = EvaluationData(arguments.images, arguments.annotations, arguments.max_images)
        evaluate_missing(models, arguments.protocols, data, out, arguments.device)
    comparison = build_comparison(models, reference=arguments.reference, notes=notes)
    if bench is None and not arguments.no_bench:
        bench = measure_speed(models, out, arguments.device)
    if bench is not None:
        add_benches(comparison, bench, str(arguments.bench or out))
    for model in comparison.models:
        if model.source is not None:
            refresh_card(model.source, list(model.evaluations.values()), bench)
    write(comparison, out, images=arguments.images, annotations=arguments.annotations, num_rows=arguments.gallery)
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check what can be checked before anything is read. Raises RunError."""
    if (arguments.images is None) != (arguments.annotations is None):
        raise RunError("--images and --annotations belong together: give both, or neither")
    if arguments.bench and arguments.no_bench:
        raise RunError("--bench and --no-bench exclude each other: leave one out")
    if not arguments.sources and not arguments.evaluations:
        raise RunError("nothing to compare: give runs, evaluations or models, or --evaluations DIR")
    out = arguments.out
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: this is a file; give a directory")
    if out.is_dir() and (strange := sorted(path.name for path in out.iterdir() if path.name not in OWN_FILES)):
        raise RunError(f"--out {out}: holds something else ({strange[0]}); give another directory")


def write(comparison: Comparison, out: Path, *, images: Path | None, annotations: Path | None, num_rows: int) -> None:
    """Write the page and the tables, and print the main table."""
    from distill.comparison.page import render_page
    from distill.comparison.tables import print_table, to_csv, to_markdown

    page = render_page(comparison, images=images, annotations=annotations, num_rows=num_rows)
    for name, text in ((PAGE_FILE, page), (CSV_FILE, to_csv(comparison)), (MARKDOWN_FILE, to_markdown(comparison))):
        write_text(out / name, text, raises=RunError)
    print_table(comparison)
    for note in comparison.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{out / PAGE_FILE}: the page; {CSV_FILE} and {MARKDOWN_FILE} beside it")
