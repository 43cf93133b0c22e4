"""A small finished comparison that several tests look at: a teacher, a student of two stages, and a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from distill.checkpoint import save_model
from distill.datasets.rle import encode_mask
from distill.sam import ModelSpec, build_from_spec
from distill.tools.cli import main

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
HW = (120, 160)
RECTANGLES = ((5, 5, 20, 20), (30, 10, 40, 60), (5, 20, 110, 120))  # top, left, height, width: of COCO's three sizes
TRAINING = """\
kind: {kind}
student: {{name: efficientvit_sam_t, image_size: 64}}
teacher: {{name: {place}/teacher.safetensors, source: online}}
data: {{images: {place}/shards, val_images: {place}/shards, batch_size: 2, num_workers: 0, max_instances: 2}}
validation: {{every_n_steps: 1, max_images: 2}}
trainer: {{max_steps: 2, log_every_n_steps: 1, accelerator: cpu, enable_progress_bar: false}}
"""


class Compared(NamedTuple):
    """place: holds photos/, set.json, teacher.safetensors, runs/, oracle/ (an evaluation). out: the comparison."""

    place: Path
    out: Path

    @property
    def data(self) -> list[str]:
        return ["--images", str(self.place / "photos"), "--annotations", str(self.place / "set.json")]


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    place = tmp_path_factory.mktemp("compared")
    write_set(place)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(build_from_spec(SPEC), place / "teacher.safetensors")
    images = ["--images", str(place / "photos"), "--annotations", str(place / "set.json")]
    assert main(["shards", "build", "coco", *images, "--out", str(place / "shards")]) == 0
    for kind, options in (("feature", []), ("mask", [f"student.init_from={place}/runs/feature"])):
        (place / f"{kind}.yaml").write_text(TRAINING.format(kind=kind, place=place))
        assert main(["train", str(place / f"{kind}.yaml"), f"run={place}/runs/{kind}", *options]) == 0
    oracle = ["evaluate", "oracle", "eval/coco_box", f"run={place}/oracle"]
    assert main([*oracle, f"data.images={place}/photos", f"data.annotations={place}/set.json"]) == 0
    out = place / "comparison"
    models = [f"teacher={place}/teacher.safetensors", f"student={place}/runs/mask", str(place / "oracle")]
    assert main(["compare", *models, *images, "--device", "cpu", "--out", str(out)]) == 0
    return Compared(place, out)


def write_set(place: Path, num_photos: int = 4) -> None:
    """Photos of 120 x 160 with a small, a medium and a large instance each, and their annotations."""
    (place / "photos").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(num_photos):
        pixels = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(HW[::-1])
        pixels.save(place / "photos" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]})
        for top, left, height, width in RECTANGLES:
            mask = np.zeros(HW, np.uint8)
            mask[top : top + height, left : left + width] = 1
            row = {"id": len(annotations), "image_id": i, "category_id": 1, "iscrowd": 0, "area": height * width}
            annotations.append({**row, "bbox": [left, top, width, height], "segmentation": encode_mask(mask)})
    categories = [{"id": 1, "name": "thing"}]
    (place / "set.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
