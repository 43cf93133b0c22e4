"""Evaluations as Python calls: the record that `evaluate_recipe` writes and returns, and how it continues one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.config.schema import AgreementDataConfig, AgreementRecipe, EvaluateDataConfig, EvaluateRecipe
from distill.data.rle import encode_mask
from distill.errors import DistillError, RunError
from distill.evaluation.finished import read_evaluation
from distill.evaluation.run import choose_num_workers, evaluate_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> EvaluateRecipe:
    """Write two photos of 30 x 40 with an instance each, and return a recipe over them."""
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 10:30] = 1
    row = {"bbox": [10, 5, 20, 15], "category_id": 1, "segmentation": encode_mask(mask), "area": int(mask.sum())}
    images = [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in range(2)]
    for image in images:
        Image.new("RGB", (40, 30)).save(tmp_path / str(image["file_name"]))
    annotations = [{**row, "id": i, "image_id": i, "iscrowd": 0} for i in range(2)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    data = EvaluateDataConfig(str(tmp_path), str(tmp_path / "set.json"))
    return EvaluateRecipe(protocol="coco_box", run=str(tmp_path / "run"), data=data)


def test_a_call_returns_what_it_writes(recipe, capsys):
    metrics = evaluate_recipe("oracle", recipe)
    assert metrics == json.loads((Path(recipe.run) / "metrics.json").read_text())
    assert metrics["miou"] == 1 and metrics["num_instances"] == 2
    assert read_evaluation(Path(recipe.run)).metrics == metrics
    assert capsys.readouterr().out == ""  # the command prints, not the call


def test_a_finished_evaluation_is_only_read(recipe):
    first = evaluate_recipe("oracle", recipe)
    with pytest.raises(RunError, match="resume=true"):
        evaluate_recipe("oracle", recipe)
    recipe.resume = True
    assert evaluate_recipe("oracle", recipe) == first
    recipe.data.max_images = 1
    with pytest.raises(RunError, match="another recipe .data.max_images was 0 and is 1"):
        evaluate_recipe("oracle", recipe)


def test_a_baseline_has_no_teacher_to_agree_with(recipe, teacher_file, tmp_path):
    agreement = AgreementRecipe(run=str(tmp_path / "agreement"), data=AgreementDataConfig(recipe.data.images))
    agreement.teacher.name = str(teacher_file)
    with pytest.raises(DistillError, match="a baseline has none"):
        evaluate_recipe("oracle", agreement, device="cpu")


def test_workers_start_only_where_there_is_much_to_do(monkeypatch):
    assert choose_num_workers(3, 1) == 3
    assert choose_num_workers(None, 199) == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert choose_num_workers(None, 200) == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert choose_num_workers(None, 200) == 1
