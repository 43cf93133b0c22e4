"""`distill bench evaluate`: an evaluation costs more than its encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.cli import main as cli


def test_an_evaluation_and_its_encoders_share(teacher_file: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["bench", "evaluate", "--student", str(teacher_file), "--photos", "2", "--prompts", "3", "--rounds", "2"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds_per_photo"]
    assert 0 < seconds["encoder"] < seconds["evaluation"]
    assert found["on_top_of_encoder"] > 0 and (found["photos"], found["prompts"]) == (2, 3)
    assert cli.main(words) == 0
    assert "on top of the encoder" in " ".join(capsys.readouterr().out.split())


def test_forms_stand_beside_the_first(teacher_file: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["bench", "evaluate", "--student", str(teacher_file), "--photos", "1", "--prompts", "3", "--rounds", "2"]
    assert cli.main([*words, "--forms", "torch", "onnxruntime", "torch-bf16", "--json"]) == 0
    forms = json.loads(capsys.readouterr().out)["forms"]
    assert list(forms) == ["torch", "onnxruntime", "torch-bf16"] and forms["torch"]["times_as_fast"] == 1
    for row in forms.values():
        for name, (least, most) in row["seconds_range"].items():
            assert 0 < least <= row["seconds_per_photo"][name] <= most
        assert row["times_as_fast_range"][0] <= row["times_as_fast"] <= row["times_as_fast_range"][1]
