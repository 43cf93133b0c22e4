"""The cost of an evaluation beside its encoder, in each runtime: all of them take turns."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
from distill.export.runtime_files import export_for_runtimes
from distill.models.checkpoint import load_model
from distill.models.devices import usable_device
from distill.models.sam import PromptableModel, build_model
from distill.runtimes.execution import Execution
from distill.runtimes.exported import ExportedModel, is_exported
from distill.runtimes.sessions import Precision, Runtime
from distill.students import STUDENTS

PHOTO_HW = (480, 640)  # COCO's most frequent size
SHARES = {
    "encoder": "embedding alone, of photos that are read already",
    "model": "embedding, and the decoder's answers",
    "evaluation": "reading, both, masks at full resolution, scores, codes",
}


@dataclass(frozen=True)
class Form:
    """A way to run the model: a runtime and its precision, such as openvino-bf16; fp32 is left out of the name."""

    name: str

    @property
    def execution(self) -> Execution:
        """The runtime and the precision."""
        runtime, _, precision = self.name.partition("-")
        return Execution(cast(Runtime, runtime), cast(Precision, precision or "fp32"))


def bench_evaluate(
    student: str,
    *,
    num_photos: int,
    num_prompts: int,
    num_workers: int,
    num_rounds: int,
    forms: Sequence[str] = ("torch",),
) -> dict[str, Any]:
    """Measure the seconds per photo of each of SHARES, and what the complete evaluation costs on top of the others.

    All shares of all forms take turns, in another order in each round.

    Args:
        student: a published name, with random weights, whose ragged masks cost most; or one of our models on disk.
        num_workers: as in a recipe; 0: none.
        forms: the runtimes of the model, of FORMS; the speed of the others is in multiples of the first one's.
    Raises:
        DistillError: a runtime is not installed, or the model cannot be read or exported.
    """
    for form in forms:
        Form(form).execution.runtime_of(student)  # known before a minute is spent
    model = build_model(student) if student in STUDENTS else load_model(student)
    device = usable_device(None)
    seconds: dict[str, dict[str, list[float]]] = {form: {name: [] for name in SHARES} for form in forms}
    cpu_seconds: dict[str, dict[str, list[float]]] = {form: {name: [] for name in SHARES} for form in forms}
    with tempfile.TemporaryDirectory() as folder, WorkerPool(num_workers) as workers:
        coco_set = write_set(Path(folder), num_photos, num_prompts)
        runs = {}
        for form in forms:
            predictor = _predictor(model, Form(form).execution, device, Path(folder))
            for name, run in build_runs(predictor, coco_set, workers).items():
                run(1)  # the first builds kernels, matrices and processes
                runs[form, name] = run
        order = random.Random(0)
        for _ in range(num_rounds):
            for form, name in order.sample(list(runs), len(runs)):
                started, cpu_started = time.perf_counter(), time.process_time()
                runs[form, name](num_photos)
                seconds[form][name].append((time.perf_counter() - started) / num_photos)
                cpu_seconds[form][name].append((time.process_time() - cpu_started) / num_photos)
    found = {form: _row(seconds, cpu_seconds, form) for form in forms}
    return {
        "student": student,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "photos": num_photos,
        "prompts": num_prompts,
        "workers": num_workers,
        **found[forms[0]],
        "forms": found,
    }


def _predictor(model: PromptableModel, execution: Execution, device: torch.device, folder: Path) -> ModelPredictor:
    """Return the model in a form. Files that another runtime needs are written to the folder, once."""
    runtime, precision = execution.runtime, execution.precision
    if runtime in (None, "torch"):
        return ModelPredictor(copy.deepcopy(model).to(device), fuse_norms=True, precision=precision)
    assert runtime is not None
    if not is_exported(folder / "files"):
        export_for_runtimes(model, folder / "files")
    return ModelPredictor(ExportedModel(folder / "files", runtime, precision))


def build_runs(predictor: ModelPredictor, coco_set: CocoSet, workers: WorkerPool) -> dict[str, Callable[[int], None]]:
    """Return the functions to measure, by name. Each takes the number of photos."""
    evaluation = PromptEvaluation(coco_set, PromptProtocol(EvaluatePromptConfig("box")))
    num_prompts = len(evaluation.photos[0].instances)
    ready = [_ready(photo, predictor.model.image_size) for photo in evaluation.photos]

    def encode(num_photos: int) -> None:
        for resized, _ in ready[:num_photos]:
            _wait(predictor.encode(resized, PHOTO_HW).embedding)

    def answer(num_photos: int) -> None:
        for resized, prompts in ready[:num_photos]:
            asyncio.run(predictor.encode(resized, PHOTO_HW).predict(prompts, "single", num_prompts))

    def evaluate(num_photos: int) -> None:
        found = list(evaluate_photos(evaluation, predictor, evaluation.photos[:num_photos], workers))
        assert len(found) == num_photos

    return {"encoder": encode, "model": answer, "evaluation": evaluate}


Seconds = Mapping[str, Mapping[str, list[float]]]  # by form and share, one for each round


def _row(seconds: Seconds, cpu_seconds: Seconds, form: str) -> dict[str, Any]:
    """Return what was measured of a form: medians over the rounds, with the smallest and the largest value.

    The seconds of the CPU are those of this process in all its threads. They say little on a GPU or with workers, and
    more than the clock on a machine that other processes use too.
    """
    found: dict[str, Any] = {}
    for prefix, measured in (("", seconds), ("cpu_", cpu_seconds)):
        own, first = measured[form], next(iter(measured.values()))
        speedups = [a / b for a, b in zip(first["evaluation"], own["evaluation"], strict=True)]
        found |= {
            f"{prefix}seconds_per_photo": {name: statistics.median(values) for name, values in own.items()},
            f"{prefix}seconds_range": {name: [min(values), max(values)] for name, values in own.items()},
            f"{prefix}on_top_of_encoder": _on_top(own, "encoder", "evaluation"),
            f"{prefix}on_top_of_model": _on_top(own, "model", "evaluation"),
            f"{prefix}times_as_fast": statistics.median(speedups),
            f"{prefix}times_as_fast_range": [min(speedups), max(speedups)],
        }
    return found


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
    """Return a table of the shares of an evaluation's time for each form of the model."""
    return [_table(found, form) for form in found["forms"]]


def _table(found: dict[str, Any], form: str) -> Table:
    title = (
        f"{found['student']} by {form} on {found['device']}: {found['prompts']} boxes on each of {found['photos']} "
        f"photos, {found['threads']} threads, {found['workers']} workers"
    )
    row = found["forms"][form]
    table = Table("share", "ms a photo", "least to most", "photos/s", "CPU ms", "what it is", title=title)
    for name, seconds in row["seconds_per_photo"].items():
        least, most = (1e3 * value for value in row["seconds_range"][name])
        spread, cpu = f"{least:.1f} to {most:.1f}", f"{1e3 * row['cpu_seconds_per_photo'][name]:.1f}"
        table.add_row(name, f"{1e3 * seconds:.1f}", spread, f"{1 / seconds:.2f}", cpu, SHARES[name])
    table.caption = (
        f"the evaluation costs {row['on_top_of_encoder']:.1%} on top of the encoder, "
        f"{row['on_top_of_model']:.1%} on top of encoder and decoder"
    )
    first = next(iter(found["forms"]))
    if form != first:
        least, most = row["times_as_fast_range"]
        table.caption += (
            f"; {row['times_as_fast']:.2f} times {first}'s photos a second ({least:.2f} to {most:.2f}), "
            f"{row['cpu_times_as_fast']:.2f} times by the CPU's seconds"
        )
    return table


def _ready(photo: AnnotatedPhoto, image_size: int) -> tuple[np.ndarray, PhotoPrompts]:
    resized, _ = read_resized(photo.path, photo.hw, image_size)
    boxes = np.array([rle_box_xyxy(instance.rle) for instance in photo.instances])
    return resized, PhotoPrompts(boxes_xyxy=boxes)


def _wait(embedding: torch.Tensor) -> None:
    """Wait until an embedding is computed, on a GPU too."""
    embedding[0, 0, 0, 0].item()


def _on_top(seconds: Mapping[str, list[float]], of: str, whole: str) -> float:
    """Return what the share `whole` costs beyond the share `of`, as the median over the rounds."""
    return statistics.median(b / a - 1 for a, b in zip(seconds[of], seconds[whole], strict=True))
