"""What an interrupted adaptation left is read again, or refused by name before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.adapt.run import PLAN_FILE, read_plan
from distill.adapt.steps import SECONDS_FILE, Settings, Steps
from distill.errors import RunError

MARKER = "marker.json"
SETTINGS: Settings = {"photos": "birds", "seed": 0, "minutes": 2.5, "mask steps": None}


def test_a_directory_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "out")
    assert not steps.begin(MARKER, SETTINGS, what="adaptation")
    assert steps.begin(MARKER, SETTINGS, what="adaptation")
    with pytest.raises(RunError, match="begun with seed 0, not 1; give another directory"):
        steps.begin(MARKER, {**SETTINGS, "seed": 1}, what="adaptation")


@pytest.mark.parametrize("text", ["", "[]", '{"photos": ["birds"]}', '{"seed": {}}', "[" * 5000, '{"minutes": NaN}'])
def test_a_damaged_marker(tmp_path: Path, text: str) -> None:
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(RunError, match=rf"{MARKER}: .*; give another directory"):
        Steps(tmp_path).begin(MARKER, SETTINGS, what="adaptation")


def test_the_times_of_a_step_are_added(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    (tmp_path / SECONDS_FILE).write_text('{"cache": 7}')
    for name in ("cache", "mask"):
        with steps.timed(name):
            pass
    assert steps.seconds() == pytest.approx({"cache": 7, "mask": 0}, abs=0.5)


@pytest.mark.parametrize("text", ["", "[]", '{"cache": "long"}', '{"cache": -1}', '{"cache": 1e300}'])
def test_damaged_times_are_refused_before_the_step(tmp_path: Path, text: str) -> None:
    (tmp_path / SECONDS_FILE).write_text(text)
    with pytest.raises(RunError, match=rf"{SECONDS_FILE}: .*; remove it"), Steps(tmp_path).timed("cache"):
        pytest.fail("the step began")


@pytest.mark.parametrize(
    "text", ["{}", "[3, 4]", '{"feature_steps": "3", "mask_steps": 4}', '{"feature_steps": 3, "mask_steps": 0}']
)
def test_a_damaged_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / PLAN_FILE
    path.write_text('{"feature_steps": 3, "mask_steps": 4}')
    assert read_plan(path) == (3, 4)
    path.write_text(text)
    with pytest.raises(RunError, match=rf"{PLAN_FILE}: .*; remove it, and the steps are planned again"):
        read_plan(path)
