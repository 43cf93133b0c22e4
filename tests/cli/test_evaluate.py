"""`distill evaluate`: its files, its refusals, and going on after a stop."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.cli import evaluate
from distill.data.rle import encode_mask
from distill.errors import CheckpointError, DataError, RecipeError, RunError
from distill.evaluation.predictors import BASELINES
from distill.models.checkpoint import save_model
from distill.models.sam import ModelSpec, build_from_spec

SPEC = ModelSpec("efficientvit_sam_t", 64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)
METRICS = {"miou", "miou_large", "miou_medium", "miou_small", "num_instances", "num_images"}

LINE = {
    *("image", "annotation_id", "area", "iou", "predicted_iou", "prompt"),  # the first version's, which tools read
    *("category_id", "boundary_iou", "score"),
}


def write_model(path: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_model(build_from_spec(SPEC), path)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Write a model, three photos of 60 x 80 with two instances each, and their annotations."""
    write_model(tmp_path / "student.safetensors", seed=0)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80})
        for left in (5, 40):
            mask = np.zeros((60, 80), np.uint8)
            mask[10 : 30 + 5 * i, left : left + 30] = 1
            row = {"id": len(annotations), "image_id": i, "bbox": [left, 10, 30, 20 + 5 * i], "category_id": 1}
            annotations.append({**row, "segmentation": encode_mask(mask), "area": int(mask.sum()), "iscrowd": 0})
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


def run(
    inputs: Path,
    *overrides: str,
    model: str = "student.safetensors",
    recipe: str = "eval/coco_box",
    device: str = "cpu",
) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_parser(parser.add_subparsers())
    data = (f"data.images={inputs}/photos", f"data.annotations={inputs}/set.json", f"run={inputs}/run")
    source = model if model in BASELINES else str(inputs / model)
    arguments = parser.parse_args(["evaluate", "--device", device, source, recipe, *data, *overrides])
    code: int = arguments.run(arguments)
    return code


def read_lines(inputs: Path) -> list[dict]:
    return [json.loads(line) for line in (inputs / "run" / "instances.jsonl").read_text().splitlines()]


def test_boxes(inputs, capsys):
    assert run(inputs) == 0
    metrics = json.loads((inputs / "run" / "metrics.json").read_text())
    assert set(metrics) >= METRICS
    assert metrics["num_instances"] == 6
    assert metrics["miou_large"] is metrics["miou_medium"] is None  # none so large: all of 600 to 900 pixels
    assert (metrics["prompt"], metrics["num_clicks"], metrics["multimask"]) == ("box", None, "single")
    lines = read_lines(inputs)
    assert metrics["miou"] == pytest.approx(np.mean([line["iou"] for line in lines]))
    assert [line["annotation_id"] for line in lines] == list(range(6))
    assert set(lines[0]) == LINE
    assert lines[0]["prompt"] == {"box_xyxy": [5, 10, 35, 30]}
    assert "miou" in capsys.readouterr().out


def test_clicks(inputs):
    assert run(inputs, "prompt.num_clicks=2", recipe="eval/coco_point") == 0
    metrics = json.loads((inputs / "run" / "metrics.json").read_text())
    assert (metrics["prompt"], metrics["num_clicks"], metrics["multimask"]) == ("point", 2, "best")
    assert all(1 <= len(line["prompt"]["points_xy"]) <= 2 for line in read_lines(inputs))


def test_the_recipe_in_the_run_directory_repeats_the_run(inputs):
    run(inputs)
    first = read_lines(inputs)
    assert run(inputs, f"run={inputs}/run2", recipe=str(inputs / "run" / "recipe.yaml")) == 0
    assert [json.loads(line) for line in (inputs / "run2" / "instances.jsonl").read_text().splitlines()] == first


def test_a_run_directory_in_use_is_refused_with_both_remedies(inputs):
    run(inputs)
    with pytest.raises(RunError, match=r"is not empty; go on with it .resume=true., or give another .run=DIR"):
        run(inputs)


def stop_after(inputs: Path, num_photos: int, *, cut: bool = False) -> None:
    """Make a finished evaluation one that was killed after some photos, or in the middle of the next one's line."""
    lines, results = read_lines(inputs), json.loads((inputs / "run" / "results.json").read_text())
    partial = inputs / "run" / "partial"
    partial.mkdir()
    text = []
    for i in range(3):
        rows = [
            {**line, "segmentation": result["segmentation"], "predicted_iou": 0.125}  # shows who wrote it
            for line, result in zip(lines, results, strict=True)
            if line["image"] == str(i)
        ]
        text.append(json.dumps({"image": str(i), "scores": rows, "cosine": None}) + "\n")
    whole = "".join(text[:num_photos])
    (partial / "rank0_0.jsonl").write_text(whole + text[num_photos][:50] if cut else whole)
    for name in ("metrics.json", "instances.jsonl", "results.json"):
        (inputs / "run" / name).unlink()


@pytest.mark.parametrize("cut", [False, True])
def test_resume_keeps_whole_photos_and_asks_about_the_others_again(inputs, cut):
    run(inputs)
    before, metrics = read_lines(inputs), json.loads((inputs / "run" / "metrics.json").read_text())
    results = (inputs / "run" / "results.json").read_text()
    stop_after(inputs, 1, cut=cut)
    assert run(inputs, "resume=true", "prompt_batch_size=1") == 0
    after = read_lines(inputs)
    assert [line["predicted_iou"] for line in after[:2]] == [0.125, 0.125]
    assert [line["iou"] for line in after] == pytest.approx([line["iou"] for line in before], abs=1e-4)
    again = json.loads((inputs / "run" / "metrics.json").read_text())
    assert again["miou"] == pytest.approx(metrics["miou"], abs=1e-4)
    assert not (inputs / "run" / "partial").exists()
    assert len(json.loads((inputs / "run" / "results.json").read_text())) == len(json.loads(results))


def test_resume_of_a_finished_evaluation_changes_nothing(inputs, capsys):
    run(inputs)
    before = {path.name: path.read_bytes() for path in (inputs / "run").iterdir()}
    assert run(inputs, "resume=true") == 0
    assert {path.name: path.read_bytes() for path in (inputs / "run").iterdir()} == before
    assert "miou" in capsys.readouterr().out


def test_resume_of_nothing_begins(inputs):
    assert run(inputs, "resume=true") == 0


@pytest.mark.parametrize(
    ("overrides", "model", "message"),
    [
        (["multimask=best"], "student.safetensors", "another recipe .multimask was single and is best"),
        ([], "other.safetensors", "another model .weights_sha256"),
        (["data.annotations=OTHER"], "student.safetensors", "another recipe .data.annotations"),
    ],
)
def test_resume_of_another_evaluation_is_refused(inputs, overrides, model, message):
    write_model(inputs / "other.safetensors", seed=1)
    (inputs / "other.json").write_bytes((inputs / "set.json").read_bytes())
    overrides = [override.replace("OTHER", f"{inputs}/other.json") for override in overrides]
    run(inputs)
    with pytest.raises(RunError, match=message):
        run(inputs, "resume=true", *overrides, model=model)


def test_resume_of_another_baseline_is_refused(inputs):
    run(inputs, model="oracle")
    with pytest.raises(RunError, match="another model .model was oracle and is fill-box"):
        run(inputs, "resume=true", model="fill-box")


def test_resume_over_changed_annotations_is_refused(inputs):
    run(inputs)
    (inputs / "set.json").write_text((inputs / "set.json").read_text() + " ")
    with pytest.raises(RunError, match="another set of files .annotations_sha256"):
        run(inputs, "resume=true")


def test_a_directory_of_something_else_is_refused(inputs):
    (inputs / "run").mkdir()
    (inputs / "run" / "holiday.txt").write_text("")
    with pytest.raises(RunError, match="holds no evaluation .no recipe.yaml."):
        run(inputs, "resume=true")


@pytest.mark.parametrize("damage", ["absent photo", "no instances", "no model"])
def test_mistakes_write_nothing(inputs, damage):
    if damage == "absent photo":
        (inputs / "photos" / "1.jpg").unlink()
    elif damage == "no instances":
        content = json.loads((inputs / "set.json").read_text())
        (inputs / "set.json").write_text(json.dumps({**content, "annotations": []}))
    model = "absent.safetensors" if damage == "no model" else "student.safetensors"
    with pytest.raises(CheckpointError if damage == "no model" else DataError):
        run(inputs, model=model)
    assert not (inputs / "run").exists()


def test_a_recipe_of_another_kind_is_refused(inputs):
    with pytest.raises(RecipeError, match="evaluate"):
        run(inputs, recipe="quickstart/feature")


def test_an_absent_device_is_refused(inputs):
    with pytest.raises(RunError, match="--device cpu"):
        run(inputs, device="cuda:99")
    assert not (inputs / "run").exists()
