"""`distill train` of a mask stage that asks the teacher, with tiny models and real tars."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from distill.cli.main import main
from distill.config.schema import CacheConfig
from distill.data.cache.job import build_cache
from distill.models.checkpoint import load_model

RECIPE = {
    "kind": "mask",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "teacher": {"source": "online"},
    "data": {"images": "images", "batch_size": 3, "num_workers": 0, "max_instances": 2},
    "prompts": {"refine_clicks": 1, "multimask_on_box": False},
    "targets": {"truth_weight": 0.0, "teacher_weight": 1.0},
    "loss": {"mask": "bce", "mask_weight": 5.0, "dice_weight": 5.0, "feature_weight": 1.0},
    "optim": {"lr": 1.0e-3, "prompt_encoder_lr_scale": 0.0},
    "trainer": {
        "max_steps": 2,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "gradient_clip_val": 0.01,
    },
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_file: Path) -> Path:
    """Make a working directory with the recipe."""
    monkeypatch.chdir(tmp_path)
    tree = {**RECIPE, "teacher": {**RECIPE["teacher"], "name": str(teacher_file)}}
    Path("mask.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def losses(run: str) -> list[dict[str, float]]:
    rows = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "train/loss" in row]


def test_from_the_cache_as_online_and_the_prompt_encoder_stays(place, photo_shards, tiny_teacher):
    index = photo_shards(6)
    build_cache(tiny_teacher, index, CacheConfig(dir="cache"), max_bad_share=0)
    assert main(["train", "mask.yaml", "run=online"]) == 0
    assert main(["train", "mask.yaml", "run=cached", "teacher.source=cache", "cache.dir=cache"]) == 0
    online, cached = losses("online")[0], losses("cached")[0]
    assert cached["train/loss"] == pytest.approx(online["train/loss"], rel=1e-2)
    assert cached["train/feature"] == pytest.approx(online["train/feature"], rel=1e-2)
    assert {"train/teacher_mask", "train/teacher_dice", "train/logit"} <= set(online)
    assert not {"train/mask", "train/iou"} & set(online)
    trained, start = load_model("online").state_dict(), tiny_teacher.model.state_dict()
    for name, tensor in trained.items():
        if name.startswith("prompt_encoder."):
            assert tensor.equal(start[name]), name
    assert not trained["mask_decoder.iou_token.weight"].equal(start["mask_decoder.iou_token.weight"])


def test_photos_alone_are_enough_with_instances_of_the_teacher(place, photo_shards):
    photo_shards(6, annotated=False)
    assert main(["train", "mask.yaml", "run=without"]) == 2  # boxes and points come from masks
    assert main(["train", "mask.yaml", "run=alone", "prompts.teacher_instances=2"]) == 0
    assert len(losses("alone")) == 2
