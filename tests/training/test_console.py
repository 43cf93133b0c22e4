"""What a training shows: its progress, no noise of Lightning's, and every warning that matters."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import pytest
import yaml

from distill.training.console import NOISE, WorthReading, is_noise, quiet_lightning

RECIPE = {
    "kind": "feature",
    "run": "run",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "data": {"images": "images", "val_images": "images", "batch_size": 2, "num_workers": 0},
    "validation": {"every_n_steps": 2, "max_images": 2},
    "trainer": {"max_steps": 4, "accelerator": "cpu", "enable_model_summary": False},
}


def test_a_person_can_read_all_that_a_training_prints(tmp_path: Path, photo_shards, teacher_file: Path) -> None:
    """Run it in a process of its own, because pytest takes the handlers that Lightning would print through."""
    photo_shards(6)
    recipe = {**RECIPE, "teacher": {"name": str(teacher_file), "source": "online"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "distill.cli.main", "train", "recipe.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stderr.splitlines()
    beginnings = ("training to step 4 on 1 x cpu", "step 1 of 4  loss ", "step 2: val/cosine ", "step 4: val/cosine ")
    expected = [*beginnings, "step 4 of 4  loss "]
    for beginning in expected:
        assert any(line.startswith(beginning) for line in lines), done.stderr
    strange = [line for line in lines if not line.startswith(("training ", "step "))]
    assert not any("ightning" in line or ".py:" in line or is_noise(line) for line in strange), done.stderr
    assert not any(is_noise(line) for line in (tmp_path / "run/log.txt").read_text().splitlines())


@pytest.mark.parametrize(
    "message",
    [
        "💡 Tip: For seamless cloud logging and experiment tracking, try installing [litlogger](...)",
        "Found 108 module(s) in eval mode at the start of training. This may lead to unexpected behavior",
        "Checkpoint directory /runs/a/checkpoints exists and is not empty.",
    ],
)
def test_noise_is_neither_shown_nor_logged(message: str) -> None:
    record = logging.LogRecord("lightning.pytorch", logging.WARNING, __file__, 1, message, (), None)
    assert not WorthReading().filter(record)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_lightning():
            warnings.warn(message, stacklevel=1)
    assert not caught


@pytest.mark.parametrize(
    "message",
    [
        "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`.",
        "Detected call of `lr_scheduler.step()` before `optimizer.step()`.",
        "You passed `deterministic=True` and `benchmark=True`.",
    ],
)
def test_warnings_that_matter_are_shown(message: str) -> None:
    record = logging.LogRecord("lightning.pytorch", logging.WARNING, __file__, 1, message, (), None)
    assert WorthReading(logging.WARNING).filter(record)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_lightning():
            warnings.warn(message, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [message]


@pytest.mark.parametrize("words", NOISE)
def test_each_noise_is_still_what_lightning_says(words: str) -> None:
    """Words that Lightning's source no longer holds hide nothing, and go."""
    assert words in lightning_sources()


@functools.cache
def lightning_sources() -> str:
    folder = Path(lightning.__path__[0])
    return "\n".join(path.read_text() for part in ("pytorch", "fabric") for path in (folder / part).rglob("*.py"))
