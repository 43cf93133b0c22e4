from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.quickstart.pipeline import MARKER_FILE, REPORT_FILE, SUMMARY_FILE


def test_a_directory_with_other_things_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "give another directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / MARKER_FILE).write_text(json.dumps({"train_photos": 99}))
    assert main(["quickstart", "--out", str(tmp_path), "--train-photos", "8"]) == 2
    assert "99" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pipeline_runs_and_a_second_run_finds_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("quickstart")  # as `make quickstart` has it: a directory called as the packaged teacher is
    command = ["quickstart", "--out", str(out), "--train-photos", "16"]
    assert main(command) == 0
    summary = json.loads((out / SUMMARY_FILE).read_text())
    assert list(summary) == ["teacher", "student_untrained", "student_after_feature", "student", "seconds"]
    for name in list(summary)[:-1]:
        assert set(summary[name]) == {"box_miou", "point_miou", "params", "encoder_gmacs"}
        assert 0 < summary[name]["box_miou"] < 1
    assert summary["student"]["params"] < summary["teacher"]["params"]
    report = (out / REPORT_FILE).read_text()
    assert "http" not in report.replace("http://www.w3.org", "")  # but for SVG's own namespaces
    assert report.count("<svg") == 8 and report.count('class="instance"') == 32  # of each prompt 16
    weights = (out / "mask/student.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "mask/student.safetensors").stat().st_mtime_ns == weights
