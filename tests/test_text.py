"""Units, tables and progress bars as a person reads them."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
from rich.table import Table

import distill
from distill.text import (
    BILLION,
    MILLION,
    NUM_NAMED,
    SafeFormatter,
    csv_cell,
    duration,
    first_few,
    line,
    markdown,
    markdown_code,
    markdown_table,
    print_tables,
    progress_bar,
    say,
    say_error,
    short_paths,
    terminal,
)
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


STRANGE = "a\x1b[31m\x07\n# b\u202e[x](http://y)\x9b|`<b>$1$ $2"


def test_what_is_printed_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say(STRANGE, "second")
    say_error("last")
    out, err = capsys.readouterr()
    assert out == "a\\x1b[31m\\x07\n# b\\u202e[x](http://y)\\x9b|`<b>$1$ $2\nsecond\n" and err == "last\n"
    assert terminal("\ud800.jpg") == "\\ud800.jpg" and line("a\r\nb\tc") == "a\\r\\nb\\tc"


def test_a_log_message_moves_no_cursor() -> None:
    record = logging.LogRecord("distill", logging.WARNING, "file", 1, "skipped %s", ("\x1b]0;title\x07",), None)
    assert SafeFormatter("%(message)s").format(record) == "skipped \\x1b]0;title\\x07"


def test_tables_and_bars_show_strange_names_as_codes(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("\x1b[2J model", "n")
    table.add_row(STRANGE, "1")
    print_tables(table)
    with progress_bar("reading [/red] \x1b[2J", 1) as advance:
        advance(1)
    out, err = capsys.readouterr()
    assert "\x1b[2J" not in out + err and "\x1b[31m" not in out and "[/red]" in err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# heading", "\\# heading"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("[link](http://x)", "[link\\](http:\\//x)"),
        ("![image](x)", "\\![image\\](x)"),
        ("https://x www.x.org me@x.org", "https:\\//x www\\.x.org me\\@x.org"),
        ("<script>&lt;", "\\<script>\\&lt;"),
        ("a|b`c`*d*_e_~f~$g$\\", "a\\|b\\`c\\`\\*d\\*\\_e\\_\\~f\\~\\$g\\$\\\\"),
        ("one\n\n# two", "one\\\\n\\\\n# two"),
        ("l0_mask", "l0_mask"),
        ("0.512 [0.500, 0.524]", "0.512 [0.500, 0.524]"),
        ("+0.013", "+0.013"),
        ("", ""),
    ],
)
def test_markdown_shows_a_text_as_it_is(text: str, shown: str) -> None:
    assert markdown(text) == shown
    assert markdown_table(["x"], [[text]]).splitlines()[2] == f"| {shown} |"


def test_code_in_markdown_ends_where_its_text_ends() -> None:
    assert [markdown_code(text) for text in ("a", "a`b", "`", "", "a\n# b|")] == [
        *("`a`", "``a`b``", "`` ` ``", "`  `", "`a\\n# b\\|`")
    ]
    assert markdown_table(["x"], [[markdown_code("a|`b")]]).splitlines()[2] == "| ``a\\|`b`` |"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", " ="])
def test_no_cell_of_a_csv_is_a_formula(start: str) -> None:
    assert str(csv_cell(f"{start}cmd|' /C calc'!A0")).startswith("'")


def test_numbers_and_names_of_a_csv_stay() -> None:
    assert [csv_cell(value) for value in (-0.5, 3, None, "model", "runs/a=b")] == [-0.5, 3, None, "model", "runs/a=b"]


def test_nothing_else_prints_or_writes_tables_for_people() -> None:
    """What prints by itself forgets to escape. JSON needs no escape, and a bench's child speaks to its parent."""
    root = Path(distill.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                is_json = node.args and ast.unparse(node.args[0]).startswith("json.dumps(")
                if path.name != "text.py" and not is_json:
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not found, "use distill.text.say"


def test_paths_of_this_machine_are_shortened(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", "/home/me")
    for text, shown in (
        ("/data/coco/val/set.json: no such file", "val/set.json: no such file"),
        (f"{tmp_path}/here/runs/a/b is begun", "runs/a/b is begun"),
        ("('/home/me/set.json', \"/srv/x\")", "('set.json', \"srv/x\")"),
        ("run=/srv/runs/l0", "run=runs/l0"),
        ("/srv/my photos/a.jpg", "srv/my photos/a.jpg"),  # cut at the blank, and not absolute any more
        ("file:///srv/runs/l0", "runs/l0"),
        ("C:\\Users\\me\\runs\\l0: gone", "runs/l0: gone"),
    ):
        assert short_paths(text) == shown
    for text in ("https://host/a/b", "s3://bucket/a", "runs/a/b", "1/2 and 3 / 4", "images/s", "${oc.env:DATA}/a/b"):
        assert short_paths(text) == text
