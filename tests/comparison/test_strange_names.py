"""Names from outside reach the tables, the plots, the page, the card and the terminal as text, and as nothing else."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from distill.cli.main import main
from distill.evaluation.record import RECIPE_FILE

ESCAPE = "\x1b[31mred\x07"
FORMULA = "=cmd|'calc'!A0"
MATHS = "$a$ and $b$ _\\frac{"
HTML = "--><script>alert(1)<b><!-- &lt;"
BREAK = "shards\n\n# A heading\n\n[a link](http://example.org) <b>|"


class Tags(HTMLParser):
    """A reader that counts the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.found.append(tag)


@pytest.fixture
def strange(compared, tmp_path: Path) -> dict[str, Path]:
    """Copy a trained run, whose teacher and data have strange names, and evaluations into strange folders."""
    run = tmp_path / FORMULA
    shutil.copytree(compared.place / "runs/mask", run)
    tree = yaml.safe_load((run / RECIPE_FILE).read_text())
    tree["teacher"]["name"] = f"{ESCAPE}/teacher"
    tree["data"]["images"] = BREAK
    (run / RECIPE_FILE).write_text(yaml.safe_dump(tree))
    places = {"run": run}
    for label, name in (("teacher", MATHS), ("student", "_hidden")):
        places[label] = tmp_path / name
        shutil.copytree(compared.out / "evaluations" / label / "coco_box", places[label])
    path = places["teacher"] / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": HTML}))
    return places


def test_tables_plots_and_page_of_strange_names(strange, compared, tmp_path, capfd):
    out = tmp_path / "out"
    sources = [str(strange["run"]), f"{MATHS}={strange['teacher']}", f"{HTML}={compared.place / 'oracle'}"]
    assert main(["compare", *sources, "--no-bench", "--gallery", "0", "--out", str(out)]) == 0
    printed, said = capfd.readouterr()
    assert "\x1b[31m" not in printed + said and "\x07" not in printed + said

    with (out / "table.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{FORMULA}" in cells and not any(re.match(r"[=+@\t\r]|-\D", cell) for cell in cells)

    table = (out / "table.md").read_text()
    assert "\x1b" not in table and "\\x1b" in table
    assert "<script>" not in table.replace("\\<", "")
    assert all(line.startswith(("| ", "- ")) for line in table.splitlines() if line)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.split("\n\n")[0].splitlines()}) == 1

    page = (out / "index.html").read_text()
    tags = Tags(page).found
    assert tags.count("script") == 1  # the page's own
    assert tags.count("b") == 0 and tags.count("svg") >= 1
    assert "$a$ and $b$" in page  # as text, and no mathematics


def test_a_card_of_strange_names(strange, capfd):
    assert main(["card", str(strange["run"]), "--add", str(strange["student"])]) == 0
    text = (strange["run"] / "README.md").read_text()
    assert "\x1b" not in text and text.count("\n# ") == 1  # its own heading
    outside_code = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert "](http" not in outside_code and "<b>" not in outside_code
    assert "\\n# A heading" in text


def test_a_note_of_strange_names(strange, tmp_path, capfd):
    (strange["run"] / "cost.json").unlink()
    label = "a\r\n# b"
    assert main(["compare", f"{label}={strange['run']}", "--no-bench", "--out", str(tmp_path / "out")]) == 0
    assert "\r" not in capfd.readouterr().err
    assert "\n# b" not in (tmp_path / "out" / "table.md").read_text()
