"""`distill bench train`: both loops train the same model on the same batches, and are compared as it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.bench import train as bench_train
from distill.cli import main as cli


def test_both_loops_do_the_same(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench_train, "NUM_PHOTOS", 4)
    monkeypatch.setattr(bench_train, "PHOTO_HW", (96, 128))
    words = ["bench", "train", "--teacher", str(teacher_file), "--image-size", "64"]
    words += ["--batch-size", "2", "--steps", "1", "--rounds", "2"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["setup"]["rounds"] == 2 and found["machine"]["cores"]
    for stage in bench_train.STAGES:
        row = found[stage]
        assert row["framework"]["loss"] == row["bare"]["loss"]  # after three steps, to the last bit
        assert row["framework"]["seconds"] > 0 and row["bare"]["core_seconds"] > 0
        assert abs(row["overhead"]) < 10
    assert len(bench_train.tables(found)) == 1


def test_a_student_that_cannot_be_built_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["bench", "train", "--student", "no_such_student"]) == 2
    error = capsys.readouterr().err
    assert "no_such_student" in error and "Traceback" not in error
