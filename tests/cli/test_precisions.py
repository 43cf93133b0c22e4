"""Both stages train under every precision that a recipe may name, and leave a float32 student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from distill.cli.main import main
from distill.config.trainer import PRECISIONS

TREE = {
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "data": {"images": "images", "val_images": "images", "batch_size": 2, "num_workers": 0, "max_instances": 2},
    "optim": {"lr": 1e-4},
    "validation": {"max_images": 2, "num_pictures": 1},
    "trainer": {
        "max_steps": 2,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}
# Options that put all parts of a mask stage to work: refinement, sampled points, and every term of the teacher.
ALL_TERMS = {
    "prompts": {"refine_clicks": 1, "mask_only_rounds": 1, "max_negative_points": 1},
    "targets": {"truth_weight": 1.0, "teacher_weight": 1.0},
    "loss": {"num_points": 32, "logit_weight": 0.1, "teacher_iou_weight": 1.0, "feature_weight": 1.0},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_shards, teacher_file: Path) -> Path:
    """Make a working directory with image shards of two photos, and a recipe for each stage."""
    monkeypatch.chdir(tmp_path)
    photo_shards(2)
    teacher = {"name": str(teacher_file), "source": "online"}
    for kind, options in (("feature", {"loss": {"huber": 1.0, "relation": 1.0}}), ("mask", ALL_TERMS)):
        Path(f"{kind}.yaml").write_text(yaml.safe_dump({"kind": kind, **TREE, "teacher": teacher, **options}))
    return tmp_path


@pytest.mark.parametrize("kind", ["feature", "mask"])
def test_a_stage_trains_under_every_precision(place: Path, capsys, kind: str) -> None:
    """The first loss agrees to the precision's own rounding; the weights are float32, whatever was trained in.

    Adam's first step is the gradient's sign, also where the gradient is rounding alone. So later losses agree less.
    """
    losses = {}
    for precision in PRECISIONS:
        assert main(["train", f"{kind}.yaml", f"trainer.precision={precision}", f"run={precision}"]) == 0, (
            precision,
            capsys.readouterr().err,
        )
        lines = [json.loads(line) for line in Path(precision, "metrics.jsonl").read_text().splitlines()]
        losses[precision] = [line["train/loss"] for line in lines if "train/loss" in line]
        assert any("val/box_miou" in line for line in lines)
        with safe_open(f"{precision}/student.safetensors", "pt") as file:
            dtypes = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - it is no dict
        assert dtypes <= {torch.float32, torch.int64}
    for precision, found in losses.items():
        first, later = (1e-4, 5e-3) if precision == "32-true" else (0.2, 0.2)
        assert found[0] == pytest.approx(losses["64-true"][0], rel=first), precision
        assert found == pytest.approx(losses["64-true"], rel=later), precision
