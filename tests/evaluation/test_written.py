"""The files of an evaluation that a stranger wrote: believed where they have the form, and else refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.cards.measured import read_bench, read_card
from distill.errors import DataError, RunError
from distill.evaluation.finished import read_evaluation, read_instances
from distill.evaluation.written import read_metrics, read_object, read_results
from distill.outside import read_scalars
from distill.training.cost import read_cost
from distill.training.record import read_trainings

METRICS: dict[str, Any] = {
    "miou": 0.5,
    "miou_large": None,
    "intervals": {"miou": [0.4, 0.6]},
    "kind": "evaluate",
    "protocol": "coco_box",
    "prompt": "box",
    "num_clicks": None,
    "multimask": "single",
    "model": "runs/a",
    "num_images": 3,
    "seconds": 1.5,
}
LINE = {"image": "a", "annotation_id": 1, "area": 5.0, "iou": 0.5, "prompt": {"box_xyxy": [0, 0, 1, 1]}}
ROW = {
    "image": "a",
    "image_id": 1,
    "category_id": 1,
    "score": None,
    "annotation_id": 1,
    "segmentation": {"size": [4, 4], "counts": "0"},
}
RUN = {"batch_size": 1, "precision": "fp32", "fused": False, "latency_ms": 1.0, "images_per_second": 2.0}
BENCH: dict[str, Any] = {
    "benchmark": "models",
    "machine": {"cpus": 2, "gpus": []},
    "models": [{"model": "a", "runs": [RUN]}],
}
CARD: dict[str, Any] = {
    "weights_sha256": "0",
    "evaluations": {"box": METRICS},
    "bench": {"machine": {}, "runs": [RUN], "model": "a"},
}
COST = {"seconds": 1.0, "steps": 1, "photos": 1, "devices": 1, "nodes": 1, "device": "cpu", "precision": "32"}
NOT_OBJECTS = ["", "[]", "null", "5", '"text"', "{", "[" * 9999, '{"a": NaN}', "\x00", '{"model": 1e999}']


def with_value(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a copy with another value at a place such as `intervals.miou`."""
    copied: Any = json.loads(json.dumps(content))
    *above, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner = copied
    for part in above:
        inner = inner[part]
    inner[last] = value
    return copied


def refused(tmp_path: Path, read: Any, content: object, *, raises: type[Exception] = RunError) -> str:
    """Return the error of reading a file with this content: one line that names the file."""
    path = tmp_path / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
    with pytest.raises(raises) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("text", NOT_OBJECTS)
def test_what_is_no_object_is_refused(tmp_path, text):
    for read in (read_metrics, read_bench, read_card):
        refused(tmp_path, read, text)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model", None),
        ("model", 5),
        ("protocol", ["coco_box"]),
        ("num_clicks", "one"),
        ("num_images", -1),
        ("num_images", 3.5),
        ("intervals", []),
        ("intervals.miou", [0.4]),
        ("intervals.miou", ["0.4", "0.6"]),
        ("miou", "0.5"),
        ("miou", [0.5]),
        ("miou", 1e300),
        ("miou_large", {}),
        ("sets", {"a": "b"}),
        ("max_images", True),
    ],
)
def test_metrics_of_wrong_types(tmp_path, place, value):
    assert "not the metrics of an evaluation" in refused(tmp_path, read_metrics, with_value(METRICS, place, value))
    refused(tmp_path, read_card, with_value(CARD, f"evaluations.box.{place}", value))


def test_metrics_keep_their_order_and_what_later_versions_add(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({**METRICS, "new": "text", "another": 0.5, "strange": [1]}))
    found = read_metrics(path)
    assert [key for key in found if key in METRICS] == list(METRICS)
    assert (found["new"], found["another"], found["weights_sha256"]) == ("text", 0.5, None) and "strange" not in found


def test_sets_lie_below_the_evaluation(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({**METRICS, "sets": {"../other": 0.5}}))
    with pytest.raises(DataError, match="does not lie in"):
        _ = read_evaluation(tmp_path).data_sha256


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("image", 5),
        ("annotation_id", "1"),
        ("area", -1),
        ("area", "5"),
        ("iou", 2),
        ("iou", "0.5"),
        ("prompt", None),
        ("prompt.box_xyxy", [0, 0, 1]),
        ("prompt.box_xyxy", [0, 0, 1, 1e9]),
        ("prompt.points_xy", [[1, 2, 3]]),
    ],
)
def test_instances_of_wrong_types(tmp_path, place, value):
    assert "line 1" in refused(tmp_path, read_instances, with_value(LINE, place, value))


@pytest.mark.parametrize("value", [[4], ["4", 4], [4, 1 << 40], [-4, 4], None])
def test_masks_of_wrong_sizes(tmp_path, value):
    refused(tmp_path, read_results, [with_value(ROW, "segmentation.size", value)])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("benchmark", "loader"),
        ("models", {}),
        ("models", [5]),
        ("models.0.runs", None),
        ("models.0.runs.0.latency_ms", "fast"),
        ("models.0.runs.0.latency_ms", -1),
        ("models.0.runs.0.batch_size", 0),
        ("models.0.params", "many"),
        ("models.0.macs", 0.5),
        ("machine", []),
        ("machine", {"cpus": {}}),
    ],
)
def test_benches_of_wrong_types(tmp_path, place, value):
    assert "`distill bench models --json FILE` writes one" in refused(
        tmp_path, read_bench, with_value(BENCH, place, value)
    )


@pytest.mark.parametrize(("key", "value"), [("seconds", "long"), ("seconds", -1), ("steps", 1.5), ("device", None)])
def test_costs_of_wrong_types(tmp_path, key, value):
    (tmp_path / "cost.json").write_text(json.dumps({**COST, key: value}))
    with pytest.raises(RunError, match="cost.json: "):
        read_cost(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "kind: feature\ndata: 5",
        "kind: feature\ndata: {}",
        "kind: feature\ndata: {images: [a]}",
        "kind: feature\ndata: {images: a}\noptim: {lr: fast}",
        "kind: feature\ndata: {images: a}\noptim: {lr: .nan}",
        "kind: feature\ndata: {images: a}\nteacher: [sam_vit_b]",
        "kind: feature\ndata: {images: a}\nstudent: {init_from: {a: b}}",
        "kind: feature\na: " + "[" * 9999,
        "kind: [feature]\n\t- x",
    ],
)
def test_recipes_of_runs_of_wrong_types(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RunError, match="recipe.yaml") as caught:
        read_trainings(tmp_path)
    assert "\n" not in str(caught.value)


def test_stages_of_wrong_types(tmp_path):
    (tmp_path / "recipe.yaml").write_text("kind: feature\ndata: {images: a}\n")
    stage = {"run": "a", "recipe": {"kind": "feature", "data": {"images": "a"}}, "cost": None, "lost_start": None}
    for strange in ([], {"stages": [5]}, {"stages": [{**stage, "recipe": []}], "lost_start": None}):
        (tmp_path / "stages.json").write_text(json.dumps(strange))
        with pytest.raises(RunError, match="stages.json"):
            read_trainings(tmp_path)
    (tmp_path / "stages.json").write_text(json.dumps({"stages": [stage], "lost_start": None}))
    assert [training.teacher for training in read_trainings(tmp_path)] == ["?", "?"]


def test_scalars_of_a_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "train/loss": 1.5}\n{"step": 1, "train/loss": NaN}\n{"step": 2, "tra')
    rows = read_scalars(path)
    assert rows[0] == {"step": 0, "train/loss": 1.5} and isinstance(rows[0]["step"], int) and len(rows) == 2
    for line in ('{"step": "0"}', '{"loss": 1}', "[]", '{"step": 0, "loss": [1]}', '{"step": NaN}', '{"step": null}'):
        assert "line 1" in refused(tmp_path, read_scalars, line, raises=DataError)


def test_a_record_is_texts_and_numbers(tmp_path):
    for strange in ("[]", '{"model": {}}', "{"):
        refused(tmp_path, lambda path: read_object(path, "record"), strange)


def test_a_pipe_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(RunError, match="must be a file"):
        read_metrics(tmp_path / "metrics.json")
