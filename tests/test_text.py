"""Units, tables and progress bars as a person reads them."""

from __future__ import annotations

import pytest
from rich.table import Table

from distill.text import BILLION, MILLION, NUM_NAMED, duration, first_few, markdown_table, print_tables, progress_bar
from distill.text import size as size_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (6000, "2 h"),
        (3600 * 12345, "12,345 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_units() -> None:
    assert (MILLION, BILLION) == (1e6, 1e9)
    assert [size_text(n) for n in (1, 999, 1500, 23e9)] == ["1 byte", "999 bytes", "1.5 kB", "23.0 GB"]


def test_the_first_few_names() -> None:
    names = [f"photo{i}" for i in range(NUM_NAMED)]
    assert first_few(names) == ", ".join(names)
    assert first_few([*names, "last"]) == ", ".join(names) + ", ..."
    assert first_few([]) == ""


def test_a_markdown_table() -> None:
    table = markdown_table(["model", "mIoU"], [["a|b", "0.5"], ["c", "0.75"]])
    assert table == "| model | mIoU |\n| --- | ---: |\n| a\\|b | 0.5 |\n| c | 0.75 |\n"


def test_printed_tables_are_wide_in_a_pipe_and_keep_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "runs/[red]/" + "x" * 85
    tables = []
    for name in ("first", "second"):
        table = Table("model", "number", title=name)
        table.add_row(wide, "1")
        tables.append(table)
    print_tables(*tables)
    captured = capsys.readouterr()
    assert captured.out.count(wide) == 2  # neither wrapped nor read as markup
    assert captured.out.index("first") < captured.out.index("second") and not captured.err
    print_tables(tables[0], pipe_width=40)
    assert wide not in (narrow := capsys.readouterr().out) and max(map(len, narrow.splitlines())) <= 40


def test_a_progress_bar_counts_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading", 3) as advance:
        advance(1)
        advance(2)
    captured = capsys.readouterr()
    assert "reading" in captured.err and "3/3" in captured.err and not captured.out


def test_a_hidden_progress_bar_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("reading", 3, shown=False) as advance:
        advance(3)
    captured = capsys.readouterr()
    assert not captured.out and not captured.err.strip()
