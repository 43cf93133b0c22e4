"""A student whose tensors are divided among ranks is gathered by all of them before rank 0 writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from distill.models.checkpoint import load_model

TIMEOUT_SECONDS = 200  # a rank that gathers alone waits for ever


@pytest.mark.slow
def test_all_ranks_take_part_in_saving(tmp_path: Path, photo_shards, teacher_file: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo_shards(4)
    trainer = {"max_steps": 2, "accelerator": "cpu", "devices": 2, "enable_progress_bar": False}
    tree = {
        "kind": "mask",
        "run": "unused",
        "student": {"name": "efficientvit_sam_t", "image_size": 64},
        "teacher": {"name": str(teacher_file), "source": "online"},
        "data": {"images": "images", "batch_size": 1, "num_workers": 0, "max_instances": 2},
        "trainer": trainer,
    }
    Path("mask.yaml").write_text(yaml.safe_dump(tree))
    for strategy in ("ddp", "gathering"):
        command = [sys.executable, str(Path(__file__).with_name("gathered_run.py")), "mask.yaml", strategy, strategy]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_model(run).state_dict() for run in ("ddp", "gathering"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0, msg=name)
