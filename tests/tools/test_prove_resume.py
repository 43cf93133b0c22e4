"""tools/prove_resume.py: a sample of its grid, and that it would notice a difference."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "tools" / "prove_resume.py"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def data(tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tool["write_data"]()


@pytest.mark.parametrize(
    ("setting", "stops"),
    [  # stage, workers, averaged weights, accumulated batches, validation
        (("feature", 0, True, 2, True), [("stop", 5), ("cut", 9)]),  # 5: inside of the step before, it validated
        (("mask", 0, False, 1, True), [("stop", 1), ("stop", 12)]),
        (("mask", 1, True, 2, False), [("stop", 3)]),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_a_sample_of_the_grid(tool, data, setting, stops) -> None:
    found = list(tool["prove"](tool["Setting"](*setting), stops))
    assert [(one.stop, one.step, one.num_steps, one.difference) for one in found] == [(*s, 14, None) for s in stops]


def test_a_difference_in_the_last_bit_is_found(tool) -> None:
    differ = tool["first_difference"]
    lines, weights = {0: ["a"], 1: ["b"]}, {"x": torch.tensor([1.0, 2.0])}
    assert differ((lines, weights), (lines, weights)) is None
    assert differ((lines, weights), ({0: ["a"]}, weights)).startswith("step 1: ['b'] undisturbed, None resumed")
    other = {"x": torch.tensor([1.0, 2.0]).nextafter(torch.tensor(3.0))}
    assert differ((lines, weights), (lines, other)) == "1 tensors of the student differ, x among them"


def test_the_grid_is_complete(tool) -> None:
    grid = tool["complete_grid"]()
    assert len(grid) == len(set(grid)) == 2 * 3 * 2 * 2 * 2
    assert {("stop", step) for step in range(1, 13)} <= set(tool["STOPS"])
