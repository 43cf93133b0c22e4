"""Text for a person: units, durations, tables and progress bars.

A name, a path or a label that came from outside is escaped here for the place it goes to.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 110  # columns of a table, where there is no terminal
MILLION, BILLION = 1e6, 1e9
NUM_NAMED = 5  # a message names this many things, and counts the others


def duration(seconds: float) -> str:
    """Return seconds, minutes or hours, whichever reads well."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"


def first_few(names: Sequence[str]) -> str:
    """Return the first NUM_NAMED names of a message, separated by commas, and "..." where there are more."""
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def size(num_bytes: float) -> str:
    """Return bytes in the decimal unit that reads well, such as "1.5 kB" or "23.0 GB"."""
    from rich.filesize import decimal

    return decimal(round(num_bytes))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. Its first column is aligned left, the others right; bars in cells are escaped."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def print_tables(*tables: Table, pipe_width: int = PIPE_WIDTH) -> None:
    """Print tables to stdout, as wide as the terminal is, or `pipe_width` columns where there is none.

    Brackets in a cell are shown as they are: rich would otherwise read "[red]" in a path as markup.
    """
    from rich.console import Console

    width = None if Console().is_terminal else pipe_width
    console = Console(width=width, markup=False, highlight=False)
    for table in tables:
        console.print(table)


def print_command(*words: object) -> None:
    """Print a `distill` command as a shell takes it, after an empty line."""
    print(f"\n$ distill {shlex.join(map(str, words))}", flush=True)


@contextlib.contextmanager
def progress_bar(
    what: str, total: int, *, done: int = 0, shown: bool = True, speed_seconds: float = 30.0
) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr with the time that is left.

    Args:
        done: the number of items that were done before.
        speed_seconds: the speed is a mean over this time.

    Yields:
        a function to be called with the number of items that were done since its last call.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())  # description, bar, share, time that is left
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not shown, speed_estimate_period=speed_seconds) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda count: progress.advance(task, count)
