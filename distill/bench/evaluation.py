"""The cost of an evaluation beside its encoder: the encoder, the model and the complete evaluation take turns."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from distill.bench.photos import draw_mask, draw_photo
from distill.config.schema import EvaluatePromptConfig
from distill.data.coco import AnnotatedPhoto, CocoSet
from distill.data.rle import rle_area, rle_box_xyxy
from distill.evaluation.evaluator import PromptEvaluation, evaluate_photos
from distill.evaluation.predictors import ModelPredictor, PhotoPrompts
from distill.evaluation.prompting import PromptProtocol
from distill.evaluation.scoring.mask_scoring import read_resized
from distill.evaluation.worker_pool import WorkerPool
from distill.models.checkpoint import load_model
from distill.models.devices import usable_device
from distill.models.sam import PromptableModel, build_model
from distill.students import STUDENTS

PHOTO_HW = (480, 640)  # COCO's most frequent size
SHARES = {
    "encoder": "embedding alone, of photos that are read already",
    "model": "embedding, and the decoder's answers",
    "evaluation": "reading, both, masks at full resolution, scores, codes",
}


def bench_evaluate(
    student: str, *, num_photos: int, num_prompts: int, num_workers: int, num_rounds: int
) -> dict[str, Any]:
    """Measure the seconds per photo of each of SHARES, and what the complete evaluation costs on top of the others.

    Args:
        student: a published name, with random weights, whose ragged masks cost most; or one of our models on disk.
        num_workers: as in a recipe; 0: none.
    """
    model = build_model(student) if student in STUDENTS else load_model(student)
    device = usable_device(None)
    seconds: dict[str, list[float]] = {name: [] for name in SHARES}
    with tempfile.TemporaryDirectory() as folder, WorkerPool(num_workers) as workers:
        coco_set = write_set(Path(folder), num_photos, num_prompts)
        runs = build_runs(model.to(device), coco_set, workers)
        for run in runs.values():
            run(1)  # the first builds kernels, matrices and processes
        for _ in range(num_rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                run(num_photos)
                seconds[name].append((time.perf_counter() - started) / num_photos)
    return {
        "student": student,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "photos": num_photos,
        "prompts": num_prompts,
        "workers": num_workers,
        "seconds_per_photo": {name: statistics.median(values) for name, values in seconds.items()},
        "on_top_of_encoder": _on_top(seconds, "encoder", "evaluation"),
        "on_top_of_model": _on_top(seconds, "model", "evaluation"),
    }


def build_runs(model: PromptableModel, coco_set: CocoSet, workers: WorkerPool) -> dict[str, Callable[[int], None]]:
    """Return the functions to measure, by name. Each takes the number of photos."""
    predictor = ModelPredictor(model, fuse_norms=True)
    evaluation = PromptEvaluation(coco_set, PromptProtocol(EvaluatePromptConfig("box")))
    num_prompts = len(evaluation.photos[0].instances)
    ready = [_ready(photo, model.image_size) for photo in evaluation.photos]

    def encode(num_photos: int) -> None:
        for resized, _ in ready[:num_photos]:
            _wait(predictor.encode(resized, PHOTO_HW).embedding)

    def answer(num_photos: int) -> None:
        for resized, prompts in ready[:num_photos]:
            predictor.encode(resized, PHOTO_HW).predict(prompts, "single", num_prompts)

    def evaluate(num_photos: int) -> None:
        found = list(evaluate_photos(evaluation, predictor, evaluation.photos[:num_photos], workers))
        assert len(found) == num_photos

    return {"encoder": encode, "model": answer, "evaluation": evaluate}


def write_set(folder: Path, num_photos: int, num_prompts: int) -> CocoSet:
    """Write a COCO-format set: photos with detail at every scale, each with `num_prompts` masks."""
    rng = np.random.default_rng(0)
    photo = draw_photo(rng, PHOTO_HW)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(num_photos):
        (folder / f"{number}.jpg").write_bytes(photo)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": PHOTO_HW[0], "width": PHOTO_HW[1]})
        while len(annotations) < (number + 1) * num_prompts:
            rle = draw_mask(rng, PHOTO_HW)
            if rle_area(rle):
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "segmentation": rle}
                annotations.append({**row, "area": rle_area(rle)})
    (folder / "set.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return CocoSet(folder, folder / "set.json")


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the table of the shares of an evaluation's time."""
    title = (
        f"{found['student']} on {found['device']}: {found['prompts']} boxes on each of {found['photos']} photos, "
        f"{found['threads']} threads, {found['workers']} workers"
    )
    table = Table("share", "ms a photo", "photos/s", "what it is", title=title)
    for name, seconds in found["seconds_per_photo"].items():
        table.add_row(name, f"{1e3 * seconds:.1f}", f"{1 / seconds:.2f}", SHARES[name])
    table.caption = (
        f"the evaluation costs {found['on_top_of_encoder']:.1%} on top of the encoder, "
        f"{found['on_top_of_model']:.1%} on top of encoder and decoder"
    )
    return [table]


def _ready(photo: AnnotatedPhoto, image_size: int) -> tuple[np.ndarray, PhotoPrompts]:
    resized, _ = read_resized(photo.path, photo.hw, image_size)
    boxes = np.array([rle_box_xyxy(instance.rle) for instance in photo.instances])
    return resized, PhotoPrompts(boxes_xyxy=boxes)


def _wait(embedding: torch.Tensor) -> None:
    """Wait until an embedding is computed, on a GPU too."""
    embedding[0, 0, 0, 0].item()


def _on_top(seconds: dict[str, list[float]], of: str, whole: str) -> float:
    """Return what the share `whole` costs beyond the share `of`, as the median over the rounds."""
    return statistics.median(b / a - 1 for a, b in zip(seconds[of], seconds[whole], strict=True))
