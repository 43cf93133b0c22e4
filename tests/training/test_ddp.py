"""Two ranks give the epoch of one rank with twice the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TIMEOUT_SECONDS = 300


def run_script(script: str, num_ranks: int, out: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name(script)), str(num_ranks), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    content: dict[str, Any] = torch.load(out, weights_only=True)
    return content


@pytest.mark.slow
def test_feature_stage_on_two_ranks(tmp_path):
    one = run_script("ddp_feature_run.py", 1, tmp_path / "one.pt")
    two = run_script("ddp_feature_run.py", 2, tmp_path / "two.pt")
    assert len(one["losses"]) == 5
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert set(one["scores"]) == {"val/cosine", "val/box_miou", "val/point_miou"}
    assert two["scores"] == pytest.approx(one["scores"], abs=1e-4)
    assert_close_weights(one["weights"], two["weights"])


@pytest.mark.slow
def test_mask_stage_on_two_ranks(tmp_path):
    """Check that a photo's draws do not depend on the ranks, and that ranks weigh unequal numbers of prompts as one."""
    one = run_script("ddp_mask_run.py", 1, tmp_path / "one.pt")
    two = run_script("ddp_mask_run.py", 2, tmp_path / "two.pt")
    assert len(one["losses"]) == 3
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert_close_weights(one["weights"], two["weights"])


def assert_close_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        if name.endswith("k_proj.bias"):
            continue  # adds the same to all scores of a query: its gradient is rounding, of which Adam makes a step
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
