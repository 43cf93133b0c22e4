"""`distill evaluate`: its protocols through the command, and several processes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.cli import evaluate
from distill.data.rle import decode_mask, encode_mask
from distill.errors import DataError, RecipeError

HW = (60, 80)
NUM_PHOTOS = 5


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Write five photos with two instances each of two categories, and a detector's results with their boxes."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    images, annotations, detections = [], [], []
    for i in range(NUM_PHOTOS):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(HW[::-1]).save(tmp_path / "photos" / f"{i}.jpg")
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]})
        for category, left in ((1, 5), (3, 40)):
            mask = np.zeros(HW, np.uint8)
            mask[10 : 30 + 5 * i, left : left + 35] = 1
            mask[10:15, left : left + 10] = 0
            row = {"image_id": i + 1, "category_id": category, "bbox": [left, 10, 35, 20 + 5 * i]}
            detections.append({**row, "score": 0.9 - i / 10})
            row = {**row, "id": len(annotations) + 1, "segmentation": encode_mask(mask), "iscrowd": 0}
            annotations.append({**row, "area": int(mask.sum())})
    categories = [{"id": 1, "name": "a"}, {"id": 3, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "set.json").write_text(json.dumps(content))
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    return tmp_path


def data_of(inputs: Path) -> list[str]:
    return [f"data.images={inputs}/photos", f"data.annotations={inputs}/set.json"]


def run(inputs: Path, model: str | Path, recipe: str | Path, *overrides: str, run: str = "run") -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    evaluate.add_parser(parser.add_subparsers())
    words = ["evaluate", "--device", "cpu", str(model), str(recipe), f"run={inputs}/{run}", *overrides]
    arguments = parser.parse_args(words)
    assert arguments.run(arguments) == 0
    return json.loads((inputs / run / "metrics.json").read_text())


def test_detections(inputs, teacher_file):
    detections = f"data.detections={inputs}/detections.json"
    oracle = run(inputs, "oracle", "eval/coco_detections", *data_of(inputs), detections, run="oracle")
    assert {oracle[name] for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar_100")} == {1}
    assert oracle["ap_large"] is None and "miou" not in oracle
    assert oracle["weights_sha256"] is None and oracle["model"] == "oracle"
    metrics = run(inputs, teacher_file, "eval/coco_detections", *data_of(inputs), detections)
    assert metrics["ap"] < 1 and metrics["protocol"] == "coco_detections" and metrics["prompt"] == "detection"
    assert (metrics["num_detections"], metrics["num_images"], metrics["num_instances"]) == (10, 5, 10)
    low, high = metrics["intervals"]["ap"]
    assert low <= metrics["ap"] <= high
    lines = [json.loads(line) for line in (inputs / "run/instances.jsonl").read_text().splitlines()]
    results = json.loads((inputs / "run/results.json").read_text())
    assert len(lines) == len(results) == 10
    assert lines[0]["iou"] is lines[0]["annotation_id"] is None and lines[0]["score"] == results[0]["score"] == 0.9
    assert set(results[0]) == {"image_id", "category_id", "segmentation", "score", "image"}


FOREIGN = {"image_id": 77, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}


@pytest.mark.parametrize(("content", "words"), [([], "holds no detection"), ([FOREIGN], "this split")])
def test_detections_of_nothing_are_refused_before_anything_is_written(inputs, content, words):
    (inputs / "detections.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        run(inputs, "oracle", "eval/coco_detections", *data_of(inputs), f"data.detections={inputs}/detections.json")
    assert not (inputs / "run").exists()


def test_annotations_of_another_split_are_refused(inputs):
    """Name photos that are not in the directory."""
    content = json.loads((inputs / "set.json").read_text())
    for row in content["images"]:
        row["file_name"] = f"train_{row['file_name']}"
    (inputs / "set.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="5 of the 5 photos .* are absent: train_0.jpg"):
        run(inputs, "oracle", "eval/coco_box", *data_of(inputs))


def test_the_mean_over_sets(inputs, teacher_file):
    one = {"images": f"{inputs}/photos", "annotations": f"{inputs}/set.json"}
    sets = {
        "one": {**one, "detections": f"{inputs}/detections.json"},
        "two": {**one, "detections": f"{inputs}/few.json"},
    }
    (inputs / "few.json").write_text(json.dumps(json.loads((inputs / "detections.json").read_text())[:5]))
    recipe = inputs / "sets.yaml"
    recipe.write_text(json.dumps({"extends": "eval/in_the_wild", "sets": sets}))
    metrics = run(inputs, "oracle", recipe)
    assert metrics["sets"]["one"] == 1 and 0 < metrics["sets"]["two"] < 1
    assert metrics["map"] == pytest.approx(np.mean(list(metrics["sets"].values())))
    low, high = metrics["intervals"]["map"]
    assert low <= metrics["map"] <= high
    of_two = json.loads((inputs / "run/two/metrics.json").read_text())
    assert of_two["ap"] == metrics["sets"]["two"] and of_two["num_detections"] == 5
    (inputs / "run/metrics.json").unlink()  # killed before the end: the sets are not evaluated again
    written = (inputs / "run/two/metrics.json").stat().st_mtime_ns
    assert run(inputs, "oracle", recipe, "resume=true")["map"] == metrics["map"]
    assert (inputs / "run/two/metrics.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({}, "sets: is empty"),
        ({"a": {"images": "."}}, "sets.a.annotations: missing"),
        ({"a": {"images": ".", "annotations": "x.json", "detections": "y.json", "anotations": 1}}, "Did you mean"),
        ({"a": {"images": ".", "annotations": "x.json", "detections": "y.json"}}, "sets.a.detections: no such file"),
    ],
)
def test_sets_are_checked_first(inputs, sets, words):
    (inputs / "sets.yaml").write_text(json.dumps({"kind": "evaluate_sets", "sets": sets}))
    with pytest.raises(RecipeError, match=words):
        run(inputs, "oracle", inputs / "sets.yaml")


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("eval/coco_box", ["prompt.kind=detection"], "data.detections: missing; give a detector's results JSON"),
        ("eval/coco_box", ["data.detections=DETECTIONS"], "read with prompt.kind=detection alone"),
        ("eval/coco_box", ["prompt.noc=[0.9]"], "prompt.noc: is for clicks; set prompt.kind=point"),
        ("eval/coco_point", ["prompt.noc=[0.9]"], "prompt.noc: one click cannot be counted"),
        ("eval/ritm/noc", ["prompt.noc=[0.9,1.2]"], r"prompt.noc\[1\]: must be above 0 and at most 1, got 1.2"),
        ("eval/ritm/noc", ["prompt.stop_iou=0.8"], "prompt.stop_iou: must be at least the highest of prompt.noc"),
        ("eval/ritm/noc", ["prompt.noc=[0.8,0.8]"], "prompt.noc: holds a target twice"),
        ("eval/coco_point", ["instances.empty=true"], "instances.empty: a mask without a pixel has no first click"),
        ("eval/coco_detections", ["data.detections=DETECTIONS", "multimask=oracle"], "has no truth to choose by"),
        ("eval/everything", ["grid.box_nms_threshold=2"], "between 0 and 1"),
    ],
)
def test_options_that_do_not_go_together(inputs, recipe, overrides, words):
    overrides = [override.replace("DETECTIONS", f"{inputs}/detections.json") for override in overrides]
    with pytest.raises(RecipeError, match=words):
        run(inputs, "oracle", recipe, *data_of(inputs), *overrides)


def test_everything_and_agreement(inputs, teacher_file):
    grid = ["grid.points_per_side=2", "data.max_images=2"]
    metrics = run(inputs, teacher_file, "eval/everything", *data_of(inputs), *grid, run="everything")
    assert metrics["num_images"] == 2 and 0 <= metrics["ar_1000"] <= 1 and metrics["kind"] == "everything"
    assert (inputs / "everything/instances.jsonl").read_text() == ""
    agreement = [f"data.images={inputs}/photos", "data.max_images=2", f"teacher.name={teacher_file}"]
    metrics = run(inputs, teacher_file, "eval/agreement", *agreement, run="agreement")
    assert metrics["cosine"] == pytest.approx(1) and metrics["teacher_sha256"] == metrics["weights_sha256"]
    assert metrics["annotations"] is None and metrics["prompt"] == "box"


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(inputs, teacher_file):
    """Share five photos, of which no rank evaluates one of the other's to be even."""
    alone = run(inputs, teacher_file, "eval/coco_point3", *data_of(inputs), run="alone")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = ["evaluate", "--device", "cpu", str(teacher_file), "eval/coco_point3", *data_of(inputs)]
    words.append(f"run={inputs}/both")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "distill.cli.main", *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    both = json.loads((inputs / "both/metrics.json").read_text())
    timing = {"date", "seconds", "photos_per_second"}
    assert_alike(
        {k: v for k, v in both.items() if k not in timing}, {k: v for k, v in alone.items() if k not in timing}
    )
    both_lines, lines = ((inputs / run / "instances.jsonl").read_text().splitlines() for run in ("both", "alone"))
    assert_alike([json.loads(line) for line in both_lines], [json.loads(line) for line in lines])
    both_results, results = (json.loads((inputs / run / "results.json").read_text()) for run in ("both", "alone"))
    for ours, theirs in zip(both_results, results, strict=True):
        masks = [decode_mask(row.pop("segmentation")) for row in (ours, theirs)]
        assert np.count_nonzero(masks[0] != masks[1]) <= 1
        assert_alike(ours, theirs)
    assert done.stdout.count("written to") == 1


def assert_alike(found: Any, expected: Any) -> None:
    """Compare JSON values: floats by a tolerance, everything else exactly.

    Two processes may add in another order. A roundoff turns a pixel whose logit is nearly 0, at most one of a mask's
    1000 or more. It moves an IoU by 1e-3.
    """
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_alike(ours, theirs)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-3)
    else:
        assert found == expected


def test_worker_processes_give_the_same_files(inputs, teacher_file):
    alone = run(inputs, teacher_file, "eval/coco_box", *data_of(inputs), run="alone")
    helped = run(inputs, teacher_file, "eval/coco_box", *data_of(inputs), "num_workers=1", run="helped")
    assert helped["miou"] == alone["miou"]
    for name in ("instances.jsonl", "results.json"):
        assert (inputs / "helped" / name).read_bytes() == (inputs / "alone" / name).read_bytes()


def test_an_evaluation_goes_on_with_another_number_of_ranks(inputs, teacher_file):
    """Keep what two ranks had done when they were killed."""
    whole = run(inputs, "oracle", "eval/coco_box", *data_of(inputs), run="whole")
    run(inputs, "oracle", "eval/coco_box", *data_of(inputs))
    lines = [json.loads(line) for line in (inputs / "run/instances.jsonl").read_text().splitlines()]
    codes = [row["segmentation"] for row in json.loads((inputs / "run/results.json").read_text())]
    partial = inputs / "run/partial"
    partial.mkdir()
    for rank, image in ((0, "0"), (1, "3")):
        rows = [
            {**line, "segmentation": code} for line, code in zip(lines, codes, strict=True) if line["image"] == image
        ]
        text = json.dumps({"image": image, "scores": rows, "cosine": None}) + "\n"
        (partial / f"rank{rank}_0.jsonl").write_text(text)
    (inputs / "run/metrics.json").unlink()
    again = run(inputs, "oracle", "eval/coco_box", *data_of(inputs), "resume=true")
    assert again["miou"] == whole["miou"] and again["num_instances"] == 10
    assert (inputs / "run/instances.jsonl").read_bytes() == (inputs / "whole/instances.jsonl").read_bytes()
