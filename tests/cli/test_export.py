"""`distill export`: files judged by default photos, and what is refused before work is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from distill.cli.main import main


def test_files_their_report_and_their_judges(teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "onnx"
    assert main(["export", str(teacher_file), "--out", str(out), "--judge-photos", "2", "--masks", "single"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["decoder.onnx", "encoder.onnx", "model.json", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert report["agreement"]["num_photos"] == 2 and report["agreement"]["boxes"] > 0.999
    assert "mask IoU with torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "--precision int8 needs photos to fit to: --calibrate IMAGES"),
        (["--precision", "int8", "--calibrate", "{photos}"], "1 photos to calibrate by, and 8 is the least"),
        (["--layout", "osam", "--to", "tensorrt"], "--layout osam takes ONNX files; leave --to tensorrt out"),
        (["--judge", "{photos}", "{photos}/none.json"], "none.json"),
    ],
)
def test_what_is_refused(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 40)).save(photos / "one.png")
    filled = [option.format(photos=photos) for option in options]
    assert main(["export", str(teacher_file), "--out", str(tmp_path / "out"), *filled]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
