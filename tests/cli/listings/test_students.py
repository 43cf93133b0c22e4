"""`distill students ls`: JSON lines, the table, a name that does not exist, and help that needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

from distill.cli.main import main


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


def test_help_loads_no_torch(tmp_path):
    program = "import sys; from distill.cli.main import main; main(['students', 'ls', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "PATTERN" in done.stdout
    assert not {"torch", "timm", "numpy"} & set(done.stdout.splitlines()[-1].split())
