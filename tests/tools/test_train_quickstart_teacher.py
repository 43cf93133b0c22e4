"""The tool that trained the packaged teacher still runs, and goes on from the phases that are finished."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from distill.models.checkpoint import load_model
from distill.quickstart.photographs import write_part

TOOL = Path(__file__).parents[2] / "tools" / "train_quickstart_teacher.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Import the tool, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(TOOL.stem, TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def test_cells_near_a_box(tool):
    near = tool.near_boxes(torch.tensor([[64.0, 128.0, 128.0, 192.0]]), side=32, prompt_size=512)
    rows, cols = near[0].any(1).nonzero().flatten(), near[0].any(0).nonzero().flatten()
    # 16 pixels a cell; the margin is a quarter of 64 pixels, and two cells: cells 4 to 7 grow by three
    assert cols.tolist() == list(range(1, 11)) and rows.tolist() == list(range(5, 15))


def test_weights_at_another_grid_are_the_same(tool):
    model = tool.build_from_spec(tool.teacher_spec(8))
    other = tool.at_grid(model, 16)
    assert (other.image_size, other.embedding_size) == (128, 16)
    assert all(other.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_phases_of_one_step_each(tool, tmp_path, monkeypatch):
    data = write_part("val", 2, tmp_path / "annotations.json")
    monkeypatch.setattr(tool, "load_imagenet_backbone", lambda encoder: None)  # another package's weights
    out = tmp_path / "out"
    command = ["--images", data.images, "--annotations", data.annotations, "--out", out]
    steps = [f"--{phase}-steps=1" for phase in ("noise", "coarse", "fine")]
    options = [*map(str, command), *steps, "--num-workers=0", "--accelerator=cpu", "--save-every=1"]
    tool.main(options)
    phases = ["noise", "coarse", "fine"]
    assert [(out / f"{phase}.safetensors").is_file() for phase in phases] == [True] * 3
    teacher = load_model(out / "quickstart_teacher.safetensors")
    assert (teacher.image_size, teacher.embedding_size) == (384, 48)
    before = (out / "noise.safetensors").stat().st_mtime_ns
    (out / "fine.safetensors").unlink()
    tool.main(options)
    assert (out / "fine.safetensors").is_file() and (out / "noise.safetensors").stat().st_mtime_ns == before
