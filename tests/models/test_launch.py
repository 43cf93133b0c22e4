"""Ranks of processes that a SLURM job array starts."""

from __future__ import annotations

import pytest

from distill.models.launch import is_array_task_alone, job_rank

ARRAY = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_STEP": "2"}


def test_ranks_over_a_job_array(monkeypatch: pytest.MonkeyPatch):
    assert job_rank(1, 4) == (1, 4) and not is_array_task_alone()
    for name, value in (ARRAY | {"SLURM_ARRAY_TASK_COUNT": "5"}).items():
        monkeypatch.setenv(name, value)
    assert job_rank(1, 4) == (9, 20) and job_rank(0, 1) == (2, 5) and is_array_task_alone()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert not is_array_task_alone()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "77")  # --array=2,4,77 is not evenly spaced, but gives a rank
    assert job_rank(0, 1)[0] < 5
