from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from distill.cli.main import main
from distill.quickstart.pipeline import MARKER_FILE, PICTURE_FILE, REPORT_FILE, SUMMARY_FILE
from distill.training.directory import SCALARS_FILE

SENTENCE = r"(\d+\.\d) times fewer MACs, (\d+\.\d) times faster, (\d+\.\d) % of the teacher's mask quality"


def test_a_directory_with_other_things_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "give another directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / MARKER_FILE).write_text(json.dumps({"train_photos": 99}))
    assert main(["quickstart", "--out", str(tmp_path), "--train-photos", "8"]) == 2
    assert "train_photos 99, not 8" in capsys.readouterr().err


def test_a_quickstart_of_a_former_teacher_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / MARKER_FILE).write_text(json.dumps({"train_photos": 8, "held_out_photos": 2, "teacher_sha256": "f00"}))
    assert main(["quickstart", "--out", str(tmp_path), "--train-photos", "8", "--held-out-photos", "2"]) == 2
    assert "begun with teacher_sha256 f00, not" in capsys.readouterr().err


def test_more_photos_than_ship(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--out", str(tmp_path / "out"), "--train-photos", "77"]) == 2
    assert "'nuclei/train' has 76 photos, not 77; give a smaller number" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pipeline_runs_and_a_second_run_finds_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("quickstart")  # as `make quickstart` has it: a directory called as the packaged teacher is
    command = ["quickstart", "--out", str(out), "--train-photos", "4", "--held-out-photos", "2"]
    assert main(command) == 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    fewer, faster, share = map(float, re.fullmatch(SENTENCE, last_line).groups())  # type: ignore[union-attr]
    summary = json.loads((out / SUMMARY_FILE).read_text())
    models = ["teacher", "student_after_feature", "student"]
    assert list(summary) == [*models, "times_fewer_macs", "share_of_quality", "speed", "seconds"]
    for name in models:
        assert set(summary[name]) == {"box_miou", "point_miou", "params", "encoder_gmacs"}
        assert 0 < summary[name]["box_miou"] < 1
    student, teacher = summary["student"], summary["teacher"]
    assert fewer >= 10 and faster >= 6
    assert fewer == pytest.approx(teacher["encoder_gmacs"] / student["encoder_gmacs"], abs=0.06)
    assert faster == pytest.approx(summary["speed"]["teacher_ms"] / summary["speed"]["student_ms"], rel=0.02)
    quality = [model["box_miou"] + model["point_miou"] for model in (student, teacher)]
    assert share == pytest.approx(100 * quality[0] / quality[1], abs=0.06)
    _check_page((out / REPORT_FILE).read_text(), last_line)
    with Image.open(out / PICTURE_FILE) as picture:
        assert picture.width < picture.height < 1200  # four photographs below each other
    weights = (out / "mask/student.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "mask/student.safetensors").stat().st_mtime_ns == weights
    assert (out / "onnx/encoder.onnx").is_file() and (out / "mask" / SCALARS_FILE).is_file()


def _check_page(report: str, sentence: str) -> None:
    assert "http" not in report.replace("http://www.w3.org", "")  # but for SVG's own namespaces
    assert sentence in html.unescape(report)
    for heading in ("Scores", "Quality and cost", "Training", "Gallery", "Photographs"):
        assert f">{heading}</h2>" in report
    num_photographs = 12
    assert report.count('class="instance"') >= 2 * 8 + num_photographs
