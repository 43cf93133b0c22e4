"""Evaluations of several models on the same photos: each photo is read once, and each model encodes it once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.config.schema import EvaluateRecipe
from distill.data.coco import AnnotatedPhoto
from distill.evaluation.detector_boxes import DetectedPhoto
from distill.evaluation.evaluator import EvaluationProtocol, photos_under_way
from distill.evaluation.predictors import EncodedPhoto, MaskPredictor
from distill.evaluation.prompting import PhotoScores
from distill.evaluation.record import OneProcess, Record
from distill.evaluation.run import (
    choose_num_workers,
    describe_execution,
    describe_model,
    evaluation_of,
    load_predictor,
)
from distill.evaluation.scoring.mask_scoring import read_in_sizes
from distill.evaluation.worker_pool import WorkerPool, run_concurrently
from distill.geometry import HW
from distill.lock import hold_directory
from distill.runtimes.execution import Execution
from distill.text import progress_bar


@dataclass(frozen=True)
class AskedEvaluation:
    """An evaluation that is asked for. The fields are the arguments of `evaluate_recipe`."""

    model: str
    recipe: EvaluateRecipe
    name: str | None = None
    execution: Execution = field(default_factory=Execution)


@dataclass(eq=False)
class _Job:
    """An evaluation under way. seconds: what its photos took so far, without what others did meanwhile."""

    evaluation: EvaluationProtocol[Any]
    predictor: MaskPredictor
    record: Record
    num_photos: int = 0
    seconds: float = 0.0


@dataclass
class _SharedPhoto:
    """A predictor for one photo that is read already. It encodes the photo for the first evaluation that asks."""

    predictor: MaskPredictor
    resized: np.ndarray | None
    image_size: int | None = None  # so that nobody reads the photo again
    photos_at_once: int = 1
    encoded: EncodedPhoto | None = None

    def encode(self, resized: np.ndarray | None, hw: HW) -> EncodedPhoto:
        """Return the encoded photo."""
        if self.encoded is None:
            self.encoded = self.predictor.encode(self.resized, hw)
        return self.encoded


def evaluate_together(
    asked: Sequence[AskedEvaluation], *, device: str | torch.device | None = None
) -> list[dict[str, Any]]:
    """Evaluate models by protocols, photo by photo, and write each record to its recipe's run directory.

    All models are in memory at a time. With `recipe.resume`, photos that an earlier evaluation finished are not
    evaluated again; a photo is read if one of the evaluations lacks it. `seconds` in metrics.json is an evaluation's
    own share of the time; the encoding counts for a model's first protocol.

    Args:
        device: of the models; None: a GPU if there is one.
    Returns:
        the content of each metrics.json.
    Raises:
        DistillError: a model, data or a device that cannot be used, or a run directory that holds something else or
            is in use by another process.
    """
    with ExitStack() as held:
        for one in asked:
            held.enter_context(hold_directory(Path(one.recipe.run), give="run=DIR"))
        jobs = _begin(asked, device)
        work = _photos_of(jobs)
        recipe = asked[0].recipe
        workers = held.enter_context(WorkerPool(choose_num_workers(recipe.num_workers, len(work))))
        advance = held.enter_context(progress_bar("photos", len(work)))
        at_once = max((job.predictor.photos_at_once for job in jobs), default=1)
        started = time.monotonic()
        coroutines = (_score(tasks, workers) for tasks in work)
        for found in run_concurrently(coroutines, limit=photos_under_way(workers, at_once)):
            for job, scores in found:
                job.record.add(scores)
            advance(1)
        total, spent = time.monotonic() - started, sum(job.seconds for job in jobs)
        return [_close(job, total / max(spent, 1e-9)) for job in jobs]


def _begin(asked: Sequence[AskedEvaluation], device: str | torch.device | None) -> list[_Job]:
    """Load each model once, read each set once, and open all records: mistakes end the run before it costs anything."""
    evaluations: list[tuple[EvaluateRecipe, EvaluationProtocol[Any], dict[str, Any]]] = []
    predictors: dict[tuple[Any, ...], MaskPredictor] = {}
    jobs = []
    for one in asked:
        rules = replace(one.recipe, run="", resume=False)
        known = next((known for known in evaluations if known[0] == rules), None)
        if known is None:
            known = (rules, *evaluation_of(one.recipe))
            evaluations.append(known)
        _, evaluation, data = known
        key = (one.model, one.name, one.execution, one.recipe.fuse, one.recipe.photos_at_once)
        if key not in predictors:
            predictors[key] = load_predictor(
                one.model, one.recipe, name=one.name, device=device, execution=one.execution
            )
        data = {**data, **describe_execution(one.model, one.execution)}
        record = Record(Path(one.recipe.run), one.recipe, describe_model(one.model), data, OneProcess())
        jobs.append(_Job(evaluation, predictors[key], record))
    return jobs


Task = tuple[_Job, Any]  # an evaluation and one of its photos


def _photos_of(jobs: Sequence[_Job]) -> list[list[Task]]:
    """Return the tasks of each photo that an evaluation lacks, in the photos' order, those of a model together."""
    work: dict[tuple[Path, HW], list[Task]] = {}
    places: dict[int, int] = {}
    for job in jobs:
        places.setdefault(id(job.predictor), len(places))
    for job in sorted(jobs, key=lambda job: places[id(job.predictor)]):
        if job.record.is_finished:
            continue
        photos = job.record.begin(job.evaluation)
        job.num_photos = len(photos)
        for photo in photos:
            annotated = _annotated(photo)
            work.setdefault((annotated.path, annotated.hw), []).append((job, photo))
    return list(work.values())


async def _score(tasks: Sequence[Task], workers: WorkerPool) -> list[tuple[_Job, PhotoScores]]:
    """Score one photo for all evaluations that lack it. Raises DataError when it cannot be decoded."""
    started = time.perf_counter()
    photo = _annotated(tasks[0][1])
    sizes = sorted({size for job, _ in tasks if (size := job.predictor.image_size) is not None})
    resized: dict[int, np.ndarray] = {}
    if sizes:
        resized, _ = await workers.run(read_in_sizes, photo.path, photo.hw, sizes)
    reading = (time.perf_counter() - started) / len(tasks)
    found = []
    shared: _SharedPhoto | None = None
    for job, of_job in tasks:
        started = time.perf_counter()
        if shared is None or shared.predictor is not job.predictor:
            size = job.predictor.image_size
            shared = _SharedPhoto(job.predictor, None if size is None else resized[size])
        found.append((job, await job.evaluation.score_photo(shared, of_job, workers)))
        job.seconds += reading + time.perf_counter() - started
    return found


def _close(job: _Job, share: float) -> dict[str, Any]:
    """Write what an evaluation found. share: the seconds of the clock for each that the jobs counted in parallel."""
    if job.record.is_finished:
        return job.record.read_metrics()
    return job.record.close(job.evaluation, job.seconds * share, job.num_photos)


def _annotated(photo: AnnotatedPhoto | DetectedPhoto) -> AnnotatedPhoto:
    return photo.photo if isinstance(photo, DetectedPhoto) else photo
