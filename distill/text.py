"""Text for a person: units, durations, tables and progress bars, and the one way out for what came from outside.

A name, a path or a label may come from a stranger's file. It is escaped here for the place that it goes to: `terminal`
and `line` for messages, `markdown` for documents, `csv_cell` for tables of numbers, `plot_label` for plots. HTML is
escaped by the templates of `distill.pages`. Nothing else of the package prints: `say` and `print_tables` do.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from distill.secret import conceal

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 110  # columns of a table, where there is no terminal
MILLION, BILLION = 1e6, 1e9
NUM_NAMED = 5  # a message names this many things, and counts the others

# Characters that move a cursor, colour or hide text, or reverse its direction: the controls of ASCII and Latin-1, lone
# surrogates, and Unicode's marks of direction, line and paragraph (Unicode 15, chapter 23).
CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
LINE_BREAK, TAB = "\n", "\t"
# What Markdown reads as more than a letter (CommonMark 0.31 and GitHub's tables, links and mathematics). An underscore
# inside a word is none, nor is a bracket that no link follows; numbers and intervals stay as they are.
MARKDOWN = re.compile(
    r"[\\`*<|~$@]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|!(?=\[)|&(?=#?\w+;)|(?<=:)//|(?<=www)\.(?=\w)"
    r"|^(?:>|[#+=-](?=[#=\s-]|$)|\[(?=[ xX]\]))|(?<=^\d)[.)](?=\s|$)|(?<=^\d\d)[.)](?=\s|$)"
)
# A path from the root on, of POSIX or Windows. What has a letter or a slash in front is a part of an address or of a
# relative path, or a fraction. A text with a blank in a path is cut there, and what follows is relative.
ABSOLUTE_PATH = re.compile(
    r"(?:file://|(?<![\w:/.~}-]))/(?!/)[^\s'\"()<>,;|]+"
    r"|\b[A-Za-z]:\\[^\s'\"()<>,;|]+"
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets take a cell that begins so for a formula (OWASP)


class Markdown(str):
    """A text that is finished Markdown. `markdown_table` takes it as it is, and escapes every other text."""


def terminal(text: object) -> str:
    """Return a message that may be printed: control characters are shown as `\\x1b`, and line breaks are kept.

    Values of the environment that a recipe uses are replaced by their references.
    """
    return CONTROLS.sub(_shown, conceal(str(text)))


def line(text: object) -> str:
    """Return a text that stays in its line, with every control character shown, line breaks included."""
    return CONTROLS.sub(lambda found: _code(found[0]), conceal(str(text)))


def _shown(found: re.Match[str]) -> str:
    return found[0] if found[0] in (LINE_BREAK, TAB) else _code(found[0])


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def say(*lines: object, file: TextIO | None = None, end: str = "\n") -> None:
    """Print lines for a person, on stdout or another stream, with what came from outside made harmless."""
    for text in lines:
        print(_encodable(terminal(text), file), file=file, end=end, flush=True)


def say_error(text: object) -> None:
    """Print a line for a person on stderr."""
    say(text, file=sys.stderr)


class SafeFormatter(logging.Formatter):
    """A formatter of log messages in which what came from outside is harmless, as `say` makes it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return terminal(super().format(record))


def _encodable(text: str, file: TextIO | None) -> str:
    """Return a text that a stream can take: a terminal of another encoding gets codes for what it lacks."""
    encoding = getattr(file or sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def markdown(text: object) -> Markdown:
    """Return a text that Markdown shows as it is, in its line: no markup, link, HTML or cell begins in it."""
    return Markdown(MARKDOWN.sub(lambda found: "\\" + found[0], line(text)))


def markdown_code(text: object) -> Markdown:
    """Return a text as code in a line of Markdown, fenced by more backticks than it holds in a row."""
    shown = line(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return Markdown(f"{fence}{space}{shown}{space}{fence}")


def csv_cell(value: object) -> object:
    """Return a cell of a CSV: a number as it is, and a text that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    shown = line(value)
    return f"'{shown}" if value.lstrip(" ").startswith(FORMULA) else shown


def plot_label(text: object) -> str:
    """Return a label for matplotlib, which reads `$...$` as mathematics and keeps `_name` out of legends."""
    shown = line(text).replace("$", r"\$")
    return f"\u2009{shown}" if shown.startswith("_") else shown  # a thin space


def short_paths(text: str) -> str:
    """Return a text for people elsewhere, in which no path begins at the root of this machine's file system.

    A path below the working directory is shown from there on; of another one, the last two parts are shown. Addresses
    stay as they are.
    """
    return ABSOLUTE_PATH.sub(lambda found: _short_path(found[0]), text)


def _short_path(path: str) -> str:
    parts = _parts(path.removeprefix("file://"))
    below_here, below_home = (
        parts[len(base) :] if base and parts[: len(base)] == base else []
        for base in map(_parts, (str(Path.cwd()), str(Path.home())))
    )
    return "/".join(below_here or (below_home or parts)[-2:])


def _parts(path: str) -> list[str]:
    """Return the parts of an absolute path, without its root or drive."""
    return [part for part in re.split(r"[/\\]+", path)[1:] if part]


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


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Collection[int] = (0,)) -> str:
    """Return a table in Markdown. Cells are escaped.

    Args:
        words: the numbers of the columns that are aligned left, by default the first one. The others are aligned right.
    """
    rule = [Markdown("---" if i in words else "---:") for i in range(len(header))]
    lines = [header, rule, *rows]
    escaped = ([cell if isinstance(cell, Markdown) else markdown(cell) for cell in row] for row in lines)
    return "".join("| " + " | ".join(row) + " |\n" for row in escaped)


def print_tables(*tables: Table, pipe_width: int = PIPE_WIDTH) -> None:
    """Print tables to stdout, as wide as the terminal is, or `pipe_width` columns where there is none.

    Brackets in a cell are shown as they are: rich would otherwise read "[red]" in a path as markup. Control characters
    are shown by their codes.
    """
    from rich.console import Console

    width = None if Console().is_terminal else pipe_width
    console = Console(width=width, markup=False, highlight=False)
    for table in tables:
        for column in table.columns:
            column.header = terminal(column.header) if isinstance(column.header, str) else column.header
            column._cells[:] = [terminal(cell) if isinstance(cell, str) else cell for cell in column._cells]
        console.print(table)


def print_command(*words: object) -> None:
    """Print a `distill` command as a shell takes it, after an empty line."""
    say(f"\n$ distill {shlex.join(map(str, words))}")


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
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())  # description, bar, share, time that is left
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not shown, speed_estimate_period=speed_seconds) as progress:
        task = progress.add_task(escape(line(what)), total=total, completed=done)
        yield lambda count: progress.advance(task, count)
