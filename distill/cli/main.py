"""`distill`: the command line. Each command is a file of this folder.

Exit codes: 0 done; 2 the user's mistake or the state of the machine, told in clear lines without a traceback; 1 a
fault of ours; 130 interrupted by Ctrl-C, 143 by SIGTERM, 138 by SIGUSR1.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from distill import __version__
from distill.errors import DistillError, Interrupted, did_you_mean
from distill.files import FULL_DISK
from distill.text import SafeFormatter, say_error, terminal

DONE, OURS, USERS, INTERRUPTED = 0, 1, 2, 130

# Files of this folder and below it, in the order of `distill --help`. Importing one loads no torch.
COMMANDS = (
    "listings.recipes",
    "listings.datasets",
    "listings.students",
    "listings.tables",
    "check",
    "shards",
    "cache",
    "train",
    "detect",
    "evaluate",
    "compare",
    "bench",
    "convert",
    "export",
    "predict",
    "demo",
    "card",
    "push",
    "adapt",
    "quickstart",
)

EPILOG = """\
examples:
  distill recipes ls
  distill check quickstart/feature data.images=shards/train cache.dir=cache run=runs/feature
  distill train quickstart/feature data.images=shards/train cache.dir=cache run=runs/feature

`distill COMMAND --help` has more of each.
"""


class Parser(argparse.ArgumentParser):
    """A parser that names the choice which a mistyped word is near to. Those of commands are of this class too."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message = f"there is no '{value}'. {did_you_mean(str(value), map(str, action.choices or ()))}"
            raise


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. Each command sets `run`, a function from its arguments to an exit code."""
    parser = Parser(
        prog="distill",
        description="Distil the Segment Anything Model into small promptable models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"distill {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(run=lambda arguments: _say_help(parser))
    for name in COMMANDS:
        importlib.import_module(f"distill.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors go to stderr."""
    if logging.lastResort is not None:  # prints the warnings of a process that has set up no logging
        logging.lastResort.setFormatter(SafeFormatter("%(message)s"))
    try:
        arguments = _parse(build_parser(), argv)
    except SystemExit as stop:  # argparse has printed its help, or its error
        return stop.code if isinstance(stop.code, int) else USERS
    try:
        code: int = arguments.run(arguments)
        return code
    except DistillError as error:
        say_error(f"error: {error}")
        return USERS
    except Interrupted as stop:
        if stop.message:
            say_error(stop.message)
        return stop.exit_code
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost function: what arrives here is a fault of ours
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            where = f" while writing {error.filename}" if error.filename else ""
            say_error(f"error: the disk is full{where}; free some space and run the command again")
            return USERS
        say_error(traceback.format_exc().rstrip())
        return OURS


def _say_help(parser: argparse.ArgumentParser) -> int:
    """Print the help of all commands, for one who named none."""
    parser.print_help()
    return USERS


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments. Recipe overrides may come after options too, which argparse alone would refuse."""
    arguments, rest = parser.parse_known_args(argv)
    strange = [text for text in rest if text.startswith("-") or "=" not in text]
    if strange or (rest and not hasattr(arguments, "overrides")):
        parser.error(terminal(f"unrecognized arguments: {' '.join(strange or rest)}"))
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
