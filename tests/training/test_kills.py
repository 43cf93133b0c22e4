"""Trainings that are killed at random moments come to the same end as undisturbed ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT, ROOT = Path(__file__).with_name("kills.py"), Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("DISTILL_NUM_KILLS", "4"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported torch")
def test_killed_trainings_end_as_undisturbed_ones(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), str(NUM_KILLS), "3", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["kills"] == NUM_KILLS
