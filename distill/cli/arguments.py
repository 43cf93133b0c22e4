"""What the commands' parsers share: a command with examples, and the types of numbers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    subparsers: Subparsers, name: str, summary: str, epilog: str, *, description: str = ""
) -> argparse.ArgumentParser:
    """Add a command, or an action of a command, and return its parser.

    Args:
        summary: its line in the list of commands; it also describes the command if there is no `description`.
        epilog: examples; the help shows them with their line breaks.
    """
    return subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive_int(text: str) -> int:
    """Parse a whole number above 0; argparse reports anything else."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above 0; argparse reports anything else."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def share(text: str) -> float:
    """Parse a share from 0 to 1; argparse reports anything else."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return number


def at_least(least: float) -> Callable[[str], float]:
    """Return a parser of numbers that are `least` or above."""

    def parse(text: str) -> float:
        number = _number(text)
        if not number >= least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of {least:g} or more")
        return number

    return parse


def _number(text: str) -> float:
    """Return the number that a text states, or NaN, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan
