"""Evaluations of several models on the same photos: each photo is read once, and the records are as if alone."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from distill.comparison.measure import EvaluationData, evaluate_missing
from distill.comparison.models import read_model
from distill.config.loading import load_recipe
from distill.evaluation.record import PARTIAL_DIR
from distill.evaluation.run import evaluate_recipe
from distill.evaluation.together import AskedEvaluation, evaluate_together
from distill.models.checkpoint import save_model
from distill.models.sam import ModelSpec, build_from_spec
from tests.fixtures.comparison import write_set

SIZES = (64, 96)  # of the models' inputs
RECIPES = ("eval/coco_box", "eval/coco_point")
NUM_PHOTOS = 3

_opened: list[Counter[str]] = []  # counters that count now; a hook of the interpreter cannot be removed


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened:
        _opened[-1][Path(str(arguments[0])).name] += 1


sys.addaudithook(_count)


@contextmanager
def opened_files() -> Iterator[Counter[str]]:
    """Count how often the block opens each file, by its name."""
    _opened.append(Counter())
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


def reads(counted: Counter[str]) -> list[int]:
    return [counted[f"{i}.jpg"] for i in range(NUM_PHOTOS)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("together")
    write_set(place, NUM_PHOTOS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for size in SIZES:
            spec = ModelSpec("efficientvit_sam_t", size, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64)
            save_model(build_from_spec(spec), place / f"model{size}.safetensors")
    return place


def recipe(place: Path, name: str, run: Path, *more: str):
    data = [f"data.images={place / 'photos'}", f"data.annotations={place / 'set.json'}"]
    return load_recipe(name, [*data, f"run={run}", *more], kinds=("evaluate",))


def weights(place: Path, size: int) -> str:
    return str(place / f"model{size}.safetensors")


def scores(run: Path) -> list[str]:
    return [(run / name).read_text() for name in ("instances.jsonl", "results.json")]


def asked_of(place: Path, out: Path, *more: str) -> list[AskedEvaluation]:
    return [
        AskedEvaluation(
            str(place / f"model{size}.safetensors"),
            recipe(place, name, out / f"{size}_{name.partition('/')[2]}", *more),
        )
        for name in RECIPES
        for size in SIZES
    ]


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """Evaluate each model by each protocol, one after the other."""
    for asked in asked_of(place, place / "alone"):
        evaluate_recipe(asked.model, asked.recipe, device="cpu")
    return place / "alone"


def test_compare_reads_each_photo_once_for_all_models_and_protocols(place, alone, tmp_path):
    models = [read_model(weights(place, size), f"m{size}") for size in SIZES]
    data = EvaluationData(place / "photos", place / "set.json")
    with opened_files() as counted:
        evaluate_missing(models, RECIPES, data, tmp_path, "cpu")
    assert reads(counted) == [1] * NUM_PHOTOS
    for size, model in zip(SIZES, models, strict=True):
        for protocol, evaluation in model.evaluations.items():
            assert scores(evaluation.directory) == scores(alone / f"{size}_{protocol.name}")
    with opened_files() as counted:  # what is there is not measured again
        evaluate_missing([read_model(models[0].source, "m64")], RECIPES, data, tmp_path, "cpu")
    assert reads(counted) == [0] * NUM_PHOTOS


def test_a_third_model_is_evaluated_beside_those_that_are_found(place, alone, tmp_path):
    data = EvaluationData(place / "photos", place / "set.json")
    evaluate_missing([read_model(weights(place, 64), "a")], RECIPES[:1], data, tmp_path, "cpu")
    models = [
        read_model(str(place / f"model{size}.safetensors"), label) for size, label in zip(SIZES, "ab", strict=True)
    ]
    with opened_files() as counted:
        evaluate_missing(models, RECIPES[:1], data, tmp_path, "cpu")
    assert reads(counted) == [1] * NUM_PHOTOS
    assert [len(model.evaluations) for model in models] == [1, 1]


def test_an_interrupted_evaluation_goes_on_beside_others(place, alone, tmp_path):
    """Leave one of four evaluations with one photo left, and expect that this photo alone is read."""
    asked = asked_of(place, tmp_path)
    evaluate_together(asked, device="cpu")
    for one in asked:  # as a kill leaves them
        run = Path(one.recipe.run)
        (run / "metrics.json").unlink()
        rows = [json.loads(line) for line in (alone / run.name / "instances.jsonl").read_text().splitlines()]
        results = json.loads((alone / run.name / "results.json").read_text())
        (run / PARTIAL_DIR).mkdir()
        with (run / PARTIAL_DIR / "rank0_0.jsonl").open("w") as file:
            for image in ["0", "1"] if run.name == "96_coco_box" else ["0", "1", "2"]:
                of_photo = [
                    {**row, "segmentation": result["segmentation"]}
                    for row, result in zip(rows, results, strict=True)
                    if row["image"] == image
                ]
                file.write(json.dumps({"image": image, "scores": of_photo, "cosine": None}) + "\n")
    with opened_files() as counted:
        evaluate_together(asked_of(place, tmp_path, "resume=true"), device="cpu")
    assert reads(counted) == [0, 0, 1]
    for one in asked:
        run = Path(one.recipe.run)
        assert scores(run) == scores(alone / run.name)


def test_photos_that_share_a_call_keep_their_scores(place, alone, tmp_path):
    evaluate_recipe(
        str(place / "model64.safetensors"),
        recipe(place, "eval/coco_box", tmp_path / "run", "photos_at_once=3", "num_workers=0"),
        device="cpu",
    )
    for one, other in zip(*(read_rows(path) for path in (tmp_path / "run", alone / "64_coco_box")), strict=True):
        assert one["annotation_id"] == other["annotation_id"]
        assert one["iou"] == pytest.approx(other["iou"], abs=1e-3)
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-4)


def read_rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "instances.jsonl").read_text().splitlines()]
