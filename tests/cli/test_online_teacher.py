"""An online teacher and a cache of its embeddings are the same teacher, to within the codec's error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from distill.cli.main import main

RECIPE = {
    "kind": "feature",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "data": {"images": "images", "batch_size": 3, "num_workers": 0},
    "loss": {"mse": 1.0, "cosine": 1.0},
    "optim": {"lr": 1.0e-3},
    "trainer": {
        "max_steps": 1,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


def first_losses(run: str) -> dict[str, float]:
    """Return the loss and its terms of the first step that was logged."""
    rows = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    row = next(row for row in rows if "train/loss" in row)
    return {name: row[name] for name in ("train/loss", "train/mse", "train/cosine")}


def test_the_same_first_loss(photo_shards, teacher_file, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo_shards(6)
    teacher = f"teacher.name={teacher_file}"
    Path("feature.yaml").write_text(yaml.safe_dump(RECIPE))
    assert main(["train", "feature.yaml", teacher, "teacher.source=online", "run=online"]) == 0
    online = first_losses("online")
    for codec, tolerance in (("fp16", 1e-3), ("int8", 2e-2)):  # relative: their L2 errors are 2e-4 and 8e-3
        options = [teacher, f"cache.dir={codec}"]
        stored = [f"cache.codec={codec}", "cache.precision=fp32"]
        assert main(["cache", "build", "quickstart/cache", "data.images=images", *options, *stored]) == 0
        assert main(["train", "feature.yaml", "teacher.source=cache", f"run=run_{codec}", *options]) == 0
        cached = first_losses(f"run_{codec}")
        assert cached == pytest.approx(online, rel=tolerance), codec
        assert cached != online  # it was the cache that was read
    other = ["run=refused", teacher, "cache.dir=int8", "cache.codec=fp16"]
    assert main(["train", "feature.yaml", "teacher.source=cache", *other]) == 2
    assert "codec (cache.codec): int8 in the cache, fp16 in the recipe" in capsys.readouterr().err
