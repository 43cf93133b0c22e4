"""`distill students ls`: what it lists, what it counts, and that help needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from distill.cli.main import main
from distill.cli.students import describe, matching_names
from distill.students import STUDENTS, Student


def test_names():
    assert matching_names("*") == list(STUDENTS)
    assert matching_names("sam_vit_b") == ["sam_vit_b"]
    assert matching_names("tinyvit") == ["tinyvit_sam_11m", "tinyvit_sam_21m"]
    assert matching_names("*_vit?") == matching_names("efficient_sam_vit[st]")
    assert set(matching_names("timm/resnet1?")) >= {"timm/resnet18"}


# Published encoders: parameters and MACs, attention products included
@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("mobile_sam", 6.07, 38.8), ("edge_sam", 5.52, 20.0), ("efficient_sam_vitt", 6.16, 102.3)],
)
def test_counts(name: str, millions: float, gmacs: float):
    row = describe(name)
    assert row.problem is None
    assert row.num_parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert row.macs / 1e9 == pytest.approx(gmacs, abs=0.1)


def test_json_lines(capsys):
    assert main(["students", "ls", "efficient_sam_*", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["efficient_sam_vitt", "efficient_sam_vits"]
    assert all("own decoder is not supported" in row["published"] for row in rows)


def test_table(capsys):
    assert main(["students", "ls", "edge_sam"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["student", "input", "params"]
    assert line.split()[:4] == ["edge_sam", "1024", "5.5", "20.0"]
    assert "edge_sam_3x.pth" in line


def test_no_match(capsys):
    assert main(["students", "ls", "mobil_sam"]) == 2
    assert "no student matches 'mobil_sam'. Did you mean 'mobile_sam'" in capsys.readouterr().err


def test_what_cannot_be_built_is_listed_with_its_reason(monkeypatch):
    monkeypatch.setitem(STUDENTS, "bad", Student("distill.students.vit", 1000, "a grid that does not fit"))
    row = describe("bad")
    assert row.num_parameters is None and "image_size 1000 cannot give" in row.problem


def test_help_loads_no_torch(tmp_path):
    program = "import sys; from distill.cli.main import main; main(['students', 'ls', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "PATTERN" in done.stdout
    assert not {"torch", "timm", "numpy"} & set(done.stdout.splitlines()[-1].split())
