"""`distill tables`: published numbers of promptable models with their sources, and our own beside them."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.cli.arguments import Subparsers, add_command, positive_float
from distill.errors import DistillError
from distill.text import print_tables, say, say_error

MEASURES = ("parameters", "macs", "throughput")
COUNTED = MEASURES[:2]  # need neither weights nor time
MOST_EXPLAINED = 3  # models whose commands and differences are printed below the tables
PIPE_WIDTH = 200  # columns of the tables, where there is no terminal

EPILOG = """\
examples:
  distill tables
  distill tables mobile_sam                         # with what explains its different APs, and the commands
  distill tables 'efficientvit_sam_l?' --measure parameters macs throughput --seconds 5
  distill tables --measure throughput --only mobile_sam edge_sam      # all rows, and the speed of two encoders
  distill tables --measure throughput --keep speeds.json              # may be stopped, and goes on
  distill tables --measure none --csv > published.csv
  distill tables edge --markdown
  distill compare quickstart published:efficientvit_sam_l0 --images DIR --annotations FILE --out comparison

Each number has a source, and each score its protocol, its boxes and its photos. Where sources disagree about a model,
each value has a row of its own. Scores of different sources are not comparable: detectors, and how a mask is chosen,
differ. Parameters and MACs are counted here without weights. "agree" says whether they are the published ones: within
half a unit of the last digit, MACs also within 1 %. `throughput` times the image encoders on this CPU as `distill bench
models` does (random weights, one photo at a time, fp32), the smallest first, which takes minutes for the large ones.
With --keep FILE, each result is written at once and is not measured again. The commands measure scores where the
released weights and the photos are on this machine.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill tables`."""
    parser = add_command(
        subparsers,
        "tables",
        "published numbers with their sources, and our own beside them",
        EPILOG,
        description="Print what was published about promptable models, beside what can be measured here.",
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="with * and ?; or a part of a name")
    parser.add_argument(
        "--measure",
        nargs="+",
        choices=(*MEASURES, "none"),
        default=COUNTED,
        metavar="MEASURE",
        help="what to measure here: parameters, macs, throughput; or none (default: parameters macs)",
    )
    parser.add_argument(
        "--seconds", type=positive_float, default=2.0, metavar="S", help="of each form of an encoder (default: 2)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=None,
        metavar="NAME",
        help="models whose throughput is measured (default: all shown)",
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="a JSON of measured throughput, to go on with")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown, with the commands")
    form.add_argument("--csv", action="store_true", help="print CSV, one line for each number")
    form.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=tables)


def tables(arguments: argparse.Namespace) -> int:
    """Print the tables of the models whose names match.

    Raises:
        DistillError: no model matches.
    """
    from distill.published.measured import cpu_throughput
    from distill.published.numbers import published_numbers
    from distill.published.table import command_lines, table_rows, to_csv, to_json, to_markdown, to_tables

    numbers = published_numbers()
    models = numbers.find(arguments.pattern)
    throughput = None
    if "throughput" in arguments.measure:
        chosen = (
            models if arguments.only is None else [model for name in arguments.only for model in numbers.find(name)]
        )
        students = dict.fromkeys(model.student for model in chosen if model.student is not None)
        throughput = cpu_throughput(list(students), arguments.seconds, keep=arguments.keep) if students else None
    elif arguments.only is not None or arguments.keep is not None:
        raise DistillError("--only and --keep are about measured throughput: add --measure throughput")
    counted = [measure for measure in arguments.measure if measure in COUNTED]
    rows = table_rows(numbers, models, counted=counted, throughput=throughput)
    if arguments.json:
        say(to_json(rows, models))
    elif arguments.csv:
        say(to_csv(rows), end="")
    elif arguments.markdown:
        say(to_markdown(rows, models), end="")
    else:
        print_tables(*to_tables(rows), pipe_width=PIPE_WIDTH)
        if len(models) > MOST_EXPLAINED:
            say_error(
                f"`distill tables NAME` of at most {MOST_EXPLAINED} models explains differences and says commands"
            )
        else:
            explained = [f"\n{model.title}: {model.why}" for model in models if model.why]
            commands = command_lines(rows, models)
            say(*explained, *(["", *commands] if commands else []))
    return 0
